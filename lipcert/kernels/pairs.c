/* MinMax and its gradient: halves of a row compared entry by entry. Called from pairs.py through ctypes.
 *
 * x is (rows, 2, half), contiguous: the larger of x[0][i], x[1][i] goes to y[0][i], the other to y[1][i], and swapped
 * says whether the second was the larger. Numbers are moved as whole words, so nothing is rounded. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <string.h>

#include "threads.h"

enum { BYTES = 64, LANES = BYTES * 8 / WORD_BITS, PIECE = 1 << 16 }; /* of a row's halves a task takes at once */
#define INLINE static inline __attribute__((always_inline))
#if WORD_BITS == 16
typedef int16_t word;
typedef int32_t wide __attribute__((vector_size(2 * BYTES)));
typedef float number __attribute__((vector_size(2 * BYTES)));
#elif WORD_BITS == 32
typedef int32_t word;
typedef float number __attribute__((vector_size(BYTES)));
#else
typedef int64_t word;
typedef double number __attribute__((vector_size(BYTES)));
#endif
typedef word vec __attribute__((vector_size(BYTES)));
typedef int8_t flags __attribute__((vector_size(LANES)));

/* All ones where a < b as numbers: equal zeros and NaN are not swapped. */
INLINE vec less(vec a, vec b) {
#if WORD_BITS == 16 /* bfloat16 is the upper half of a float; its order is that of its bits, sign apart */
  vec x = a ^ (vec)((a >> 15) & 0x7fff), y = b ^ (vec)((b >> 15) & 0x7fff);
  vec size = a & 0x7fff, other = b & 0x7fff;
  return (x < y) & ((size | other) != 0) & (size <= 0x7f80) & (other <= 0x7f80);
#else
  return (vec)((number)a < (number)b);
#endif
}

INLINE void pair(const word *a, long half, word *high, int8_t *swapped, long n) {
  vec p = {0}, q = {0};
  memcpy(&p, a, n * sizeof(word));
  memcpy(&q, a + half, n * sizeof(word));
  vec mask = less(p, q), change = (p ^ q) & mask, h = p ^ change, l = q ^ change;
  flags f = __builtin_convertvector(-mask, flags);
  memcpy(high, &h, n * sizeof(word));
  memcpy(high + half, &l, n * sizeof(word));
  memcpy(swapped, &f, n);
}

INLINE void unpair(const word *high, long half, const int8_t *swapped, word *a, long n) {
  vec p = {0}, q = {0};
  flags f = {0};
  memcpy(&p, high, n * sizeof(word));
  memcpy(&q, high + half, n * sizeof(word));
  memcpy(&f, swapped, n);
  vec change = (p ^ q) & -__builtin_convertvector(f, vec), h = p ^ change, l = q ^ change;
  memcpy(a, &h, n * sizeof(word));
  memcpy(a + half, &l, n * sizeof(word));
}

typedef struct { const word *x; word *y; int8_t *swapped; long rows, half, step; } job;

INLINE void one_vector(int back, const word *x, long half, word *y, int8_t *swapped, long n) {
  if (back) unpair(x, half, swapped, y, n);
  else pair(x, half, y, swapped, n);
}

INLINE void some_rows(const job *j, long index, int back) {
  long end = (index + 1) * j->step < j->rows ? (index + 1) * j->step : j->rows;
  for (long r = index * j->step; r < end; r++) {
    const word *x = j->x + 2 * j->half * r;
    word *y = j->y + 2 * j->half * r;
    int8_t *swapped = j->swapped + j->half * r;
    long i = 0, rest = j->half % LANES;
    for (; i < j->half - rest; i += LANES) one_vector(back, x + i, j->half, y + i, swapped + i, LANES);
    if (rest) one_vector(back, x + i, j->half, y + i, swapped + i, rest);
  }
}

static void forward_task(const void *argument, long index, void *scratch) {
  (void)scratch;
  some_rows(argument, index, 0);
}

static void backward_task(const void *argument, long index, void *scratch) {
  (void)scratch;
  some_rows(argument, index, 1);
}

static int run(task *what, const word *x, word *y, int8_t *swapped, long rows, long half, int threads) {
  job j = {x, y, swapped, rows, half, PIECE / half + 1};
  return run_tasks(what, &j, (rows + j.step - 1) / j.step, threads, 0);
}

int minmax_forward(const word *x, word *y, int8_t *swapped, long rows, long half, int threads) {
  return run(forward_task, x, y, swapped, rows, half, threads);
}

int minmax_backward(const word *grad, word *dx, int8_t *swapped, long rows, long half, int threads) {
  return run(backward_task, grad, dx, swapped, rows, half, threads);
}
