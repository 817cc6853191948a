/* What the sources share. A source that is written once for float and double includes itself with REAL and NAME. */
#ifndef RHEOBASE_NATIVE_H
#define RHEOBASE_NATIVE_H

#include <stdint.h>

/* Compiled for several x86-64 levels, the best of which is taken when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#define INLINE static inline __attribute__((always_inline))

#endif
