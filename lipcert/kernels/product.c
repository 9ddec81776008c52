/* c = a b for matrices with any strides, in tiles kept in registers. Called from product.py; -DREAL_BITS=32 or 64.
 *
 * a (m, k), b (k, n), c (m, n) contiguous. Every entry of c is a sum of k products in increasing order of k, taken in
 * blocks of DEEP, each product and sum rounded once or together (a fused multiply-add), whatever the threads. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <string.h>

#include "threads.h"

#if REAL_BITS == 32
typedef float real;
#else
typedef double real;
#endif
#if defined(__AVX512F__)
enum { BYTES = 64, ROWS = 8, VECS = 3 };
#else
enum { BYTES = 32, ROWS = 4, VECS = 2 };
#endif
enum { LANES = BYTES / sizeof(real), WIDE = VECS * LANES, HIGH = 96, ACROSS = 8 * WIDE, DEEP = 256 };
#define INLINE static inline __attribute__((always_inline))
typedef real vec __attribute__((vector_size(BYTES)));
INLINE vec load(const real *from) { vec a; memcpy(&a, from, BYTES); return a; }
INLINE void store(real *to, vec a) { memcpy(to, &a, BYTES); }

typedef struct {
  const real *a, *b;
  real *c;
  long m, n, k, am, ak, bk, bn; /* sizes; steps in memory from entry to entry */
} job;

INLINE long least(long a, long b) { return a < b ? a : b; }

/* `count` rows of a (or columns of b) by `depth`, `step` apart, as panels of `width`; what is missing is 0. */
static void pack(const real *from, long count, long depth, long step, long along, long width, real *to) {
  for (long first = 0; first < count; first += width, to += width * depth) {
    long whole = least(width, count - first);
    for (long k = 0; k < depth; k++)
      for (long i = 0; i < width; i++) to[k * width + i] = i < whole ? from[(first + i) * step + k * along] : 0;
  }
}

INLINE void tile(const real *a, const real *b, long depth, vec sum[ROWS][VECS]) {
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < VECS; v++) sum[r][v] = (vec){0};
  for (long k = 0; k < depth; k++) {
    vec row[VECS];
    for (int v = 0; v < VECS; v++) row[v] = load(b + k * WIDE + v * LANES);
    for (int r = 0; r < ROWS; r++) {
      vec entry = a[k * ROWS + r] - (vec){0};
      for (int v = 0; v < VECS; v++) sum[r][v] += entry * row[v];
    }
  }
}

/* One block of c, HIGH by ACROSS. */
static void block_task(const void *argument, long index, void *scratch) {
  const job *j = argument;
  long blocks = (j->n + ACROSS - 1) / ACROSS, top = index / blocks * HIGH, left = index % blocks * ACROSS;
  long rows = least(HIGH, j->m - top), columns = least(ACROSS, j->n - left);
  real *a = scratch, *b = a + HIGH * DEEP;
  for (long first = 0; first < j->k; first += DEEP) {
    long depth = least(DEEP, j->k - first);
    pack(j->a + top * j->am + first * j->ak, rows, depth, j->am, j->ak, ROWS, a);
    pack(j->b + left * j->bn + first * j->bk, columns, depth, j->bn, j->bk, WIDE, b);
    for (long q = 0; q < columns; q += WIDE)
      for (long p = 0; p < rows; p += ROWS) {
        vec sum[ROWS][VECS];
        tile(a + p * depth, b + q * depth, depth, sum);
        long high = least(ROWS, rows - p), wide = least(WIDE, columns - q);
        for (long r = 0; r < high; r++) {
          real *c = j->c + (top + p + r) * j->n + left + q, spare[WIDE];
          real *to = wide == WIDE ? c : spare;
          if (to == spare) memcpy(spare, c, wide * sizeof(real));
          for (int v = 0; v < VECS; v++) store(to + v * LANES, first ? load(to + v * LANES) + sum[r][v] : sum[r][v]);
          if (to == spare) memcpy(c, spare, wide * sizeof(real));
        }
      }
  }
}

/* 0, or 1 where memory ran out. */
int product(const real *a, const real *b, real *c, long m, long n, long k, long am, long ak, long bk, long bn,
            int threads) {
  job j = {a, b, c, m, n, k, am, ak, bk, bn};
  long count = ((m + HIGH - 1) / HIGH) * ((n + ACROSS - 1) / ACROSS);
  return run_tasks(block_task, &j, count, threads, sizeof(real) * DEEP * (HIGH + ACROSS));
}
