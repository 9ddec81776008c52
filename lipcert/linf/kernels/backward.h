/* Gradients: dy/dx_i = sign(x_i - w_i) (|x_i - w_i| / y)^(p-1), dy/dw_i its negative; both from one power.
 *
 * Here the lanes lie along the inputs, so that a term is added to both gradients without moving lanes. Threads share
 * out the inputs: every gradient is summed in the same order however many there are.
 */
#ifndef LIPCERT_BACKWARD_H
#define LIPCERT_BACKWARD_H
#include "powers.h"

enum { HIGH = MOST, LONG = 32, STRIP = 8, STACK = 512 }; /* rows of x and w in a tile, vectors of a strip, rows kept */

typedef struct {
  const real *grad, *x, *w, *y;
  const int32_t *where;
  real *dx, *dw;
  long batch, outputs, inputs, strip; /* strip: vectors of inputs a task takes */
  real power;                         /* p - 1 */
  int whole;                          /* p - 1 where it is a small integer, else -1 */
  real ratio;                         /* entries below ratio * y are dropped; 0: none */
} slope_job;

/* Gradients of outputs in (rows x LONG) tiles, and 1 / y. Nothing where y = 0, NaN where y is not finite. */
static void coefficients(const slope_job *j, long row, long column, real unit[HIGH][LONG], real slope[HIGH][LONG]) {
  for (int r = 0; r < HIGH; r++)
    for (int o = 0; o < LONG; o++) {
      int inside = row + r < j->batch && column + o < j->outputs;
      long at = inside ? (row + r) * j->outputs + column + o : 0;
      real y = inside ? j->y[at] : 0, inverse = 1 / y;
      inverse = inverse > REAL_MAX ? REAL_MAX : inverse;
      unit[r][o] = y > REAL_MAX ? (real)NAN : y == 0 ? 0 : inverse;
      slope[r][o] = y > REAL_MAX || y != y ? (real)NAN : y == 0 ? 0 : j->grad[at];
    }
}

/* Strip of `strip` vectors of some rows, [vector][row]; zeros beyond the data. */
static void take(const real *from, long rows, long high, long inputs, long start, long strip, vec *to) {
  for (long s = 0; s < strip; s++)
    for (long r = 0; r < high; r++) {
      long i = start + s * LANES, valid = inputs - i < LANES ? inputs - i : LANES;
      vec a = {0};
      if (r < rows && valid > 0) memcpy(&a, from + r * inputs + i, valid * sizeof(real));
      to[s * high + r] = a;
    }
}

static void give(const vec *from, long rows, long high, long inputs, long start, long strip, int add, real *to) {
  for (long s = 0; s < strip; s++)
    for (long r = 0; r < rows; r++)
      for (long l = 0, i = start + s * LANES; l < LANES && i + l < inputs; l++) {
        real *place = to + r * inputs + i + l;
        *place = from[s * high + r][l] + (add ? *place : 0);
      }
}

/* |u|^power with the sign of u, for `count` vectors; 0 where u is 0. */
INLINE void signed_power(vec *u, int count, int whole, real p) {
  vec old[MOST];
  if (whole > 0 && whole % 2) {
    power(u, count, whole, p);
    return;
  }
  ALL old[k] = u[k], u[k] = magnitude(u[k]);
  if (whole)
    power(u, count, whole > 0 ? whole : 0, p);
  else
    ALL u[k] = splat(1);
  ALL u[k] = (vec)(((ivec)u[k] | ((ivec)old[k] & SIGN)) & (old[k] != 0));
}

/* One tile: HIGH rows of x against LONG rows of w, one vector of inputs. */
INLINE void slope_tile(const vec *x, vec *dx, const vec *w, vec *dw, real unit[HIGH][LONG], real slope[HIGH][LONG],
                       int whole, real p) {
  vec a[HIGH], da[HIGH];
  for (int r = 0; r < HIGH; r++) a[r] = x[r], da[r] = dx[r];
  for (int o = 0; o < LONG; o++) {
    vec b = w[o], db = dw[o];
    for (int h = 0; h < HIGH; h += 4) {
      vec u[4];
      for (int k = 0; k < 4; k++) u[k] = (a[h + k] - b) * unit[h + k][o];
      signed_power(u, 4, whole, p);
      for (int k = 0; k < 4; k++) {
        u[k] = u[k] * slope[h + k][o];
        da[h + k] += u[k];
        db -= u[k];
      }
    }
    dw[o] = db;
  }
  for (int r = 0; r < HIGH; r++) dx[r] = da[r];
}

/* The same where nearly all terms vanish: look for those that do not. */
INLINE void sparse_tile(const vec *x, vec *dx, const vec *w, vec *dw, real unit[HIGH][LONG], real slope[HIGH][LONG],
                        real ratio, real p) {
  vec a[HIGH], least = splat(ratio);
  for (int r = 0; r < HIGH; r++) a[r] = x[r];
  for (int o = 0; o < LONG; o++) {
    vec b = w[o], largest = splat(0);
    for (int r = 0; r < HIGH; r++) largest = top(largest, magnitude((a[r] - b) * unit[r][o]));
    if (!exceeds(largest, least)) continue;
    for (int r = 0; r < HIGH; r++) {
      vec u = (a[r] - b) * unit[r][o];
      if (!exceeds(magnitude(u), least)) continue;
      signed_power(&u, 1, -1, p);
      u = u * slope[r][o];
      dx[r] += u;
      dw[o] -= u;
    }
  }
}

static void slope_task(const void *argument, long index, void *scratch) {
  const slope_job *j = argument;
  long n = j->strip, start = index * n * LANES;
  vec *x = scratch, *dx = x + STACK * n, *w = dx + STACK * n, *dw = w + LONG * n;
  real unit[HIGH][LONG], slope[HIGH][LONG];
  unsigned mode = flush_tiny();
  for (long first = 0; first < j->batch; first += STACK) {
    long rows = j->batch - first < STACK ? j->batch - first : STACK;
    for (long b = 0; b < rows; b += HIGH)
      take(j->x + (first + b) * j->inputs, rows - b, HIGH, j->inputs, start, n, x + b * n);
    memset(dx, 0, STACK * n * sizeof(vec));
    for (long o = 0; o < j->outputs; o += LONG) {
      long wide = j->outputs - o < LONG ? j->outputs - o : LONG;
      take(j->w + o * j->inputs, wide, LONG, j->inputs, start, n, w);
      memset(dw, 0, LONG * n * sizeof(vec));
      for (long b = 0; b < rows; b += HIGH) {
        coefficients(j, first + b, o, unit, slope);
        for (long s = 0; s < n; s++) {
          long at = (b * n) + s * HIGH;
          if (j->ratio > 0)
            sparse_tile(x + at, dx + at, w + s * LONG, dw + s * LONG, unit, slope, j->ratio, j->power);
          else if (j->whole == 7)
            slope_tile(x + at, dx + at, w + s * LONG, dw + s * LONG, unit, slope, 7, j->power);
          else if (j->whole >= 0)
            slope_tile(x + at, dx + at, w + s * LONG, dw + s * LONG, unit, slope, j->whole, j->power);
          else
            slope_tile(x + at, dx + at, w + s * LONG, dw + s * LONG, unit, slope, -1, j->power);
        }
      }
      give(dw, wide, LONG, j->inputs, start, n, first > 0, j->dw + o * j->inputs);
    }
    for (long b = 0; b < rows; b += HIGH)
      give(dx + b * n, rows - b < HIGH ? rows - b : HIGH, HIGH, j->inputs, start, n, 0,
           j->dx + (first + b) * j->inputs);
  }
  restore(mode);
}

/* ----------------------------------------------------------------------------------- p = inf: one entry an output */
INLINE real carried(const slope_job *j, long at, int32_t where) {
  return j->y[at] != j->y[at] ? (real)NAN : where < 0 ? -j->grad[at] : j->grad[at];
}

static void scatter_x(const void *argument, long index, void *scratch) {
  const slope_job *j = argument;
  real *row = j->dx + index * j->inputs;
  (void)scratch;
  memset(row, 0, j->inputs * sizeof(real));
  for (long o = 0, at = index * j->outputs; o < j->outputs; o++, at++)
    if (j->where[at]) row[labs(j->where[at]) - 1] += carried(j, at, j->where[at]);
}

static void scatter_w(const void *argument, long index, void *scratch) {
  const slope_job *j = argument;
  long from = index * LANES, to = from + LANES < j->outputs ? from + LANES : j->outputs;
  (void)scratch;
  memset(j->dw + from * j->inputs, 0, (to - from) * j->inputs * sizeof(real));
  for (long b = 0; b < j->batch; b++)
    for (long o = from, at = b * j->outputs + from; o < to; o++, at++)
      if (j->where[at]) j->dw[o * j->inputs + labs(j->where[at]) - 1] -= carried(j, at, j->where[at]);
}
#endif
