/* Vectors of the width of this machine, in the vector extension that GCC and Clang share.
 *
 * Compiled once a type: -DREAL_BITS=32 (float) or 64 (double).
 *
 * Order of bits: for non-negative floats the order of the values is the order of their bits as integers, and a NaN is
 * above infinity. So maxima are taken of bits, by integer instructions, of which there are more units than for floats,
 * and a NaN survives. As unsigned integers, negative floats are above positive ones, the most negative on top.
 */
#ifndef LIPCERT_VECTOR_H
#define LIPCERT_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE4_1__)
#include <immintrin.h>
#endif

#if REAL_BITS == 32
typedef float real;
typedef int32_t word;
typedef uint32_t uword;
#define REAL_MAX 3.40282347e38f
#define REAL_MIN 1.17549435e-38f
#else
typedef double real;
typedef int64_t word;
typedef uint64_t uword;
#define REAL_MAX 1.7976931348623157e308
#define REAL_MIN 2.2250738585072014e-308
#endif

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES ((long)(BYTES / sizeof(real)))
#define SIGN ((word)((uword)1 << (REAL_BITS - 1)))
#define MAGNITUDE (~SIGN)
enum { MOST = 8 }; /* vectors a power is taken of at once */
#define INLINE static inline __attribute__((always_inline))

typedef real vec __attribute__((vector_size(BYTES)));
typedef word ivec __attribute__((vector_size(BYTES)));
typedef uword uvec __attribute__((vector_size(BYTES)));

INLINE vec splat(real a) { return a - (vec){0}; }
INLINE ivec isplat(word a) { return a - (ivec){0}; }
INLINE vec load(const real *from) { vec a; memcpy(&a, from, BYTES); return a; }
INLINE void store(real *to, vec a) { memcpy(to, &a, BYTES); }
INLINE vec magnitude(vec a) { return (vec)((ivec)a & MAGNITUDE); }
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* Maximum of bits as signed integers: of non-negative floats, their maximum, NaN on top. */
INLINE vec top(vec a, vec b) {
#if BYTES == 64 && REAL_BITS == 32
  return (vec)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif BYTES == 64
  return (vec)_mm512_max_epi64((__m512i)a, (__m512i)b);
#elif BYTES == 32 && REAL_BITS == 32 && defined(__AVX2__)
  return (vec)_mm256_max_epi32((__m256i)a, (__m256i)b);
#elif BYTES == 16 && REAL_BITS == 32 && defined(__SSE4_1__)
  return (vec)_mm_max_epi32((__m128i)a, (__m128i)b);
#else
  return choose((ivec)a > (ivec)b, a, b);
#endif
}

/* Maximum of bits as unsigned integers: the most negative float, or the largest where none is negative. */
INLINE vec bottom(vec a, vec b) {
#if BYTES == 64 && REAL_BITS == 32
  return (vec)_mm512_max_epu32((__m512i)a, (__m512i)b);
#elif BYTES == 64
  return (vec)_mm512_max_epu64((__m512i)a, (__m512i)b);
#elif BYTES == 32 && REAL_BITS == 32 && defined(__AVX2__)
  return (vec)_mm256_max_epu32((__m256i)a, (__m256i)b);
#elif BYTES == 16 && REAL_BITS == 32 && defined(__SSE4_1__)
  return (vec)_mm_max_epu32((__m128i)a, (__m128i)b);
#else
  return choose((ivec)((uvec)a > (uvec)b), a, b);
#endif
}

/* Maximum of numbers. */
INLINE vec larger(vec a, vec b) {
#if BYTES == 64 && REAL_BITS == 32
  return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif BYTES == 32 && REAL_BITS == 32
  return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return choose(a > b, a, b);
#endif
}

INLINE int any(ivec mask) {
#if BYTES == 64 && REAL_BITS == 32
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif BYTES == 64
  return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#elif BYTES == 32
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#elif defined(__SSE4_1__)
  return !_mm_testz_si128((__m128i)mask, (__m128i)mask);
#else
  word all = 0;
  for (long l = 0; l < LANES; l++) all |= mask[l];
  return all != 0;
#endif
}

/* Whether some lane of a is above b, as bits of non-negative floats: a NaN counts as above. */
INLINE int exceeds(vec a, vec b) {
#if BYTES == 64 && REAL_BITS == 32
  return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b) != 0;
#elif BYTES == 64
  return _mm512_cmpgt_epi64_mask((__m512i)a, (__m512i)b) != 0;
#else
  return any((ivec)a > (ivec)b);
#endif
}

/* u = |u|^p for `count` vectors, 2^(p log2 |u|), step by step for all of them so that they fill the pipeline.
 * Polynomials are minimax: log2(1+z)/z of degree 7 for 1+z in [sqrt 1/2, sqrt 2], relative error 2e-7 (so log2 is as
 * good near 1, where it matters for large p); 2^r of degree 5 for |r| <= 1/2, 1e-7. The exponent is clamped to
 * [-126, 127], so 0^p is 1e-38 rather than 0. */
#define ALL for (int k = 0; k < count; k++)
INLINE void real_power(vec *u, int count, real p) {
#if REAL_BITS == 32
  vec s[MOST], z[MOST], e[MOST];
  ALL u[k] = magnitude(u[k]);
  ALL e[k] = (vec)(((ivec)u[k] - 0x3f3504f3) >> 23);
  ALL z[k] = (vec)((ivec)u[k] - ((ivec)e[k] << 23)) - 1.0f;
  ALL e[k] = __builtin_convertvector((ivec)e[k], vec);
  ALL s[k] = z[k] * -0.14581169f + 0.23404238f;
  ALL s[k] = s[k] * z[k] - 0.24887688f;
  ALL s[k] = s[k] * z[k] + 0.28709871f;
  ALL s[k] = s[k] * z[k] - 0.36023962f;
  ALL s[k] = s[k] * z[k] + 0.48092324f;
  ALL s[k] = s[k] * z[k] - 0.72135282f;
  ALL s[k] = s[k] * z[k] + 1.44269490f;
  ALL z[k] = (s[k] * z[k] + e[k]) * p;
  ALL z[k] = larger(z[k], splat(-126.0f));
  ALL z[k] = -larger(-z[k], splat(-127.0f));
  ALL e[k] = z[k] + 12582912.0f; /* 1.5 * 2^23: the low bits are now the nearest integer */
  ALL z[k] = z[k] - (e[k] - 12582912.0f);
  ALL s[k] = z[k] * 0.0013276472f + 0.0096755410f;
  ALL s[k] = s[k] * z[k] + 0.055507131f;
  ALL s[k] = s[k] * z[k] + 0.24022120f;
  ALL s[k] = s[k] * z[k] + 0.69314694f;
  ALL s[k] = s[k] * z[k] + 1.0f;
  ALL u[k] = (vec)((ivec)s[k] + ((ivec)e[k] << 23));
#else
  ALL for (long l = 0; l < LANES; l++) u[k][l] = pow(fabs(u[k][l]), p);
#endif
}

/* Entries below 2^-126 that come out of a product become 0 until `restore`: they are slow and do not matter in sums. */
#if defined(__SSE4_1__)
INLINE unsigned flush_tiny(void) { unsigned old = _mm_getcsr(); _mm_setcsr(old | 0x8000); return old; }
INLINE void restore(unsigned old) { _mm_setcsr(old); }
#else
INLINE unsigned flush_tiny(void) { return 0; }
INLINE void restore(unsigned old) { (void)old; }
#endif
#endif
