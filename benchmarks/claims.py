"""Published claims about the energy of spiking language models, taken apart: writes docs/claims.md.

python benchmarks/claims.py                  the page, in a minute or two
python benchmarks/claims.py SECTION          one section alone, printed: spikegpt, egru or spinnaker2
"""

import argparse

import claims_egru
import claims_spikegpt
import claims_spinnaker2
import torch
from _claims import ROOT, flow

SECTIONS = {
    "spikegpt": (claims_spikegpt.arithmetic, claims_spikegpt.counted),
    "egru": (claims_egru.arithmetic, claims_egru.counted),
    "spinnaker2": (claims_spinnaker2.arithmetic,),
}
HEAD = """# The claims, taken apart

Three published claims about the energy of spiking and event-based language models: what can be recomputed, what
cannot, and what the same networks cost when they are counted. `python benchmarks/claims.py` writes this page.

- A figure of a paper is marked published. Most were read at second hand: in notes, tables or code that quote the paper.
- A figure by formula has its formula beside it. A counted figure has its command beside it.
- Nothing is fitted. Where a published figure does not follow from published constants, that is what is said.
- Energies are published constants times counts ([energy.md](energy.md)). Nothing here was measured with a meter by us.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", nargs="?", choices=SECTIONS)
    section = parser.parse_args().section
    torch.set_num_threads(1)
    names = [section] if section else list(SECTIONS)
    texts = [flow(write()) for name in names for write in SECTIONS[name]]
    if section:
        print("\n".join(texts))
    else:
        (ROOT / "docs" / "claims.md").write_text("\n".join([HEAD, *texts]))


if __name__ == "__main__":
    main()
