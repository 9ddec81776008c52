/* c = a b for matrices of any layout, in tiles kept in registers. Called from product.py; -DREAL_BITS=32 or 64.
 *
 * a (m, k) has steps am, ak. Entry (k, n) of b lies at along[k] + across[n], so that the windows of a convolution are a
 * matrix, too. c (m, n) is contiguous. `count` such products with one a, their b's `step` numbers apart.
 *
 * Every entry of c is a sum of k products in increasing order of k, taken in blocks of DEEP, each product and sum
 * rounded once or together (a fused multiply-add), whatever the threads. */
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
enum { BYTES = 64, ROWS = 8 };
#else
enum { BYTES = 32, ROWS = 4 };
#endif
enum { VECS = 2, LANES = BYTES / sizeof(real), WIDE = VECS * LANES, HIGH = 256, ACROSS = 16 * WIDE, DEEP = 128 };
#define INLINE static inline __attribute__((always_inline))
typedef real vec __attribute__((vector_size(BYTES)));
INLINE vec load(const real *from) { vec a; memcpy(&a, from, BYTES); return a; }
INLINE void store(real *to, vec a) { memcpy(to, &a, BYTES); }
INLINE long least(long a, long b) { return a < b ? a : b; }

typedef struct {
  const real *a, *b;
  real *c;
  long m, n, k, am, ak;
  const long *along, *across;
  long count, step;
} job;

/* `rows` rows of a, `depth` deep, as panels of ROWS, entry after entry; what is missing is 0. */
static void pack_a(const job *j, const real *a, long rows, long depth, real *to) {
  for (long first = 0; first < rows; first += ROWS, to += ROWS * depth)
    for (long k = 0; k < depth; k++)
      for (long i = 0; i < ROWS; i++) to[k * ROWS + i] = first + i < rows ? a[(first + i) * j->am + k * j->ak] : 0;
}

/* `columns` columns of b likewise, as panels of WIDE. */
static void pack_b(const real *b, const long *along, const long *across, long columns, long depth, real *to) {
  for (long first = 0; first < columns; first += WIDE, to += WIDE * depth)
    for (long v = 0; v < WIDE; v += LANES) {
      const long *at = across + first + v;
      long whole = columns - first - v;
      if (whole >= LANES && at[LANES - 1] - at[0] == LANES - 1) { /* offsets ascend: neighbours in memory */
        for (long k = 0; k < depth; k++) store(to + k * WIDE + v, load(b + along[k] + at[0]));
        continue;
      }
      for (long i = 0; i < LANES; i++)
        for (long k = 0; k < depth; k++) to[k * WIDE + v + i] = i < whole ? b[along[k] + at[i]] : 0;
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

/* Writes (or adds, from the second block of k on) the part of a tile that c has. */
INLINE void write_tile(vec sum[ROWS][VECS], real *c, long n, long high, long wide, int add) {
  for (long r = 0; r < high; r++) {
    real spare[WIDE] = {0}, *at = c + r * n, *to = wide == WIDE ? at : spare;
    if (add && to == spare) memcpy(spare, at, wide * sizeof(real));
    for (int v = 0; v < VECS; v++) store(to + v * LANES, add ? load(to + v * LANES) + sum[r][v] : sum[r][v]);
    if (to == spare) memcpy(at, spare, wide * sizeof(real));
  }
}

/* One block of one c, HIGH by ACROSS. */
static void block_task(const void *argument, long index, void *scratch) {
  const job *j = argument;
  long wide = (j->n + ACROSS - 1) / ACROSS, blocks = (j->m + HIGH - 1) / HIGH * wide, item = index / blocks;
  long top = index % blocks / wide * HIGH, left = index % wide * ACROSS;
  long rows = least(HIGH, j->m - top), columns = least(ACROSS, j->n - left);
  real *a = scratch, *b = a + HIGH * DEEP, *c = j->c + item * j->m * j->n;
  for (long first = 0; first < j->k; first += DEEP) {
    long depth = least(DEEP, j->k - first);
    pack_a(j, j->a + top * j->am + first * j->ak, rows, depth, a);
    pack_b(j->b + item * j->step, j->along + first, j->across + left, columns, depth, b);
    for (long q = 0; q < columns; q += WIDE)
      for (long p = 0; p < rows; p += ROWS) {
        vec sum[ROWS][VECS];
        tile(a + p * depth, b + q * depth, depth, sum);
        write_tile(sum, c + (top + p) * j->n + left + q, j->n, least(ROWS, rows - p), least(WIDE, columns - q), first > 0);
      }
  }
}

/* 0, or 1 where memory ran out. */
int product(const real *a, const real *b, real *c, const long *along, const long *across, long m, long n, long k,
            long am, long ak, long count, long step, int threads) {
  job j = {a, b, c, m, n, k, am, ak, along, across, count, step};
  long tasks = count * ((m + HIGH - 1) / HIGH) * ((n + ACROSS - 1) / ACROSS);
  return run_tasks(block_task, &j, tasks, threads, sizeof(real) * DEEP * (HIGH + ACROSS));
}
