/* Kernels of l_inf-distance layers, called from native.py through ctypes. See maxima.h, powers.h and backward.h.
 *
 * x (batch, inputs), w (outputs, inputs), y (batch, outputs), all contiguous. Every function returns 0, or 1 where
 * memory ran out. Shared libraries must not be linked with -ffast-math: it changes the arithmetic of the whole process.
 */
#define _POSIX_C_SOURCE 200809L
#include "backward.h"
#include "maxima.h"
#include "powers.h"

/* What a few pairs of rows tell about the data. */
typedef struct {
  double typical, range; /* median of the largest distances, and the largest over the smallest of them */
  double dense;          /* share of entries at least `ratio` times the largest of their pair */
} sample;

static sample look(const real *x, const real *w, long batch, long outputs, long inputs, double ratio) {
  enum { PAIRS = 16 };
  double seen[PAIRS];
  long count = 0, above = 0;
  for (long k = 0; k < PAIRS; k++) {
    const real *a = x + k * (batch - 1) / (PAIRS - 1) * inputs;
    const real *b = w + k * 7 % PAIRS * (outputs - 1) / (PAIRS - 1) * inputs;
    double largest = 0;
    for (long i = 0; i < inputs; i++) {
      double t = fabs((double)a[i] - b[i]);
      largest = t > largest ? t : largest;
    }
    if (!(largest > 0) || largest > REAL_MAX) continue;
    for (long i = 0; i < inputs; i++) above += fabs((double)a[i] - b[i]) > ratio * largest;
    long place = count++;
    for (; place && seen[place - 1] > largest; place--) seen[place] = seen[place - 1];
    seen[place] = largest;
  }
  if (!count) return (sample){1, 1, 1};
  return (sample){seen[count / 2], seen[count - 1] / seen[0], (double)above / (count * inputs)};
}

/* Measured costs of a vector of terms, in operations of a multiplication unit: dense, by squaring or by logarithms;
 * and sparse, where a share of the entries has to be looked at again, `slope` times as costly as an operation. */
static double dense_cost(int whole) { return whole > 0 ? 32 - __builtin_clz(whole) + __builtin_popcount(whole) : 30; }
static double sparse_cost(double share, double slope) {
  double vectors = LANES * share;
  return 5 + slope * vectors / (1 + 5 * vectors);
}

int distance_max(const real *x, const real *w, real *y, int32_t *where, long batch, long outputs, long inputs,
                 int threads) {
  job j = {.x = x, .w = w, .y = y, .where = where, .batch = batch, .outputs = outputs, .inputs = inputs, .scale = 1};
  return run_tiles(&j, where ? tile_where : tile_max, (where ? 2 : 1) * TILE, 1, threads);
}

/* way: DIRECT, STABLE or SPARSE to force one; CHOOSE by what a few pairs show. whole: p where it is a small integer. */
enum { CHOOSE, DIRECT, STABLE, SPARSE };

int distance_power(const real *x, const real *w, real *y, long batch, long outputs, long inputs, double p, int whole,
                   double ratio, int way, int threads) {
  sample s = look(x, w, batch, outputs, inputs, ratio);
  int exponent = ilogb(s.typical);
  job j = {.x = x, .w = w, .y = y, .batch = batch, .outputs = outputs, .inputs = inputs, .p = (real)p, .whole = whole,
           .ratio = (real)ratio, .scale = (real)ldexp(1, exponent > 60 ? -60 : exponent < -60 ? 60 : -exponent)};
  if (way == CHOOSE) {
    int fits = p * log2(s.range) < 60;
    way = sparse_cost(s.dense, 250) < dense_cost(whole) + (fits ? 0 : 4) ? SPARSE : fits ? DIRECT : STABLE;
  }
  if (way != SPARSE) j.ratio = 0;
  long room = ((inputs + CHUNK - 1) / CHUNK) * ROWS * VECS;
  tile_kernel *kernel = way != DIRECT ? tile_stable : whole == 2 ? tile_direct2 : whole == 8 ? tile_direct8
                        : whole ? tile_direct_whole : tile_direct_real;
  return run_tiles(&j, kernel, room, 0, threads);
}

int interval_max(const real *lower, const real *upper, const real *w, real *low, real *high, long batch, long outputs,
                 long inputs, int threads) {
  job j = {.x = lower, .x2 = upper, .w = w, .y = low, .y2 = high, .batch = batch, .outputs = outputs, .inputs = inputs,
           .scale = 1};
  return run_tiles(&j, tile_box, 2 * TILE, 1, threads);
}

/* upper NULL: distances of x itself. */
int sorted_max(const real *x, const real *upper, const real *w, real *low, real *high, long batch, long outputs,
               long inputs, long count, int threads) {
  job j = {.x = x, .x2 = upper, .w = w, .y = low, .y2 = high, .batch = batch, .outputs = outputs, .inputs = inputs,
           .count = count, .scale = 1};
  return run_tiles(&j, tile_sorted, count, 0, threads);
}

/* way as above: SPARSE leaves out entries below ratio * y. whole: p - 1 where it is a small integer, else -1. */
int slope_power(const real *grad, const real *x, const real *w, const real *y, real *dx, real *dw, long batch,
                long outputs, long inputs, double p, int whole, double ratio, int way, int threads) {
  long vectors = (inputs + LANES - 1) / LANES, strip = threads > 1 ? vectors / (3 * threads) : STRIP;
  strip = strip < 1 ? 1 : strip > STRIP ? STRIP : strip;
  slope_job j = {.grad = grad, .x = x, .w = w, .y = y, .dx = dx, .dw = dw, .batch = batch, .outputs = outputs,
                 .inputs = inputs, .strip = strip, .power = (real)(p - 1), .whole = whole, .ratio = (real)ratio};
  if (way == CHOOSE) {
    double share = ratio > 0 ? look(x, w, batch, outputs, inputs, ratio).dense : 1;
    way = sparse_cost(share, 220) < dense_cost(whole) + 4 ? SPARSE : STABLE;
  }
  if (way != SPARSE) j.ratio = 0;
  return run_tasks(slope_task, &j, (vectors + strip - 1) / strip, threads, 2 * (STACK + LONG) * strip * sizeof(vec));
}

int slope_max(const real *grad, const real *x, const real *w, const real *y, const int32_t *where, real *dx, real *dw,
              long batch, long outputs, long inputs, int threads) {
  slope_job j = {.grad = grad, .x = x, .w = w, .y = y, .where = where, .dx = dx, .dw = dw, .batch = batch,
                 .outputs = outputs, .inputs = inputs};
  return run_tasks(scatter_x, &j, batch, threads, 0) ||
         run_tasks(scatter_w, &j, (outputs + LANES - 1) / LANES, threads, 0);
}

/* Speed of one kind of instruction: a tile in registers, `steps` times a subtraction (0), a bitwise operation (1) or a
 * multiply-add (2). For the limits that benchmarks count. `seed` holds at least 2 * ROWS * VECS numbers below 1. */
int arithmetic(int kind, real *seed, long steps) {
  tile a, b;
  EACH a[r][v] = splat(seed[r * VECS + v]), b[r][v] = splat(seed[(ROWS + r) * VECS + v]);
  for (long s = 0; s < steps; s++) {
    if (kind == 0)
      EACH a[r][v] = b[r][v] - a[r][v];
    else if (kind == 1)
      EACH a[r][v] = (vec)((ivec)a[r][v] ^ (ivec)b[r][v]);
    else
      EACH a[r][v] = a[r][v] * b[r][v] + b[r][v];
  }
  EACH seed[r * VECS + v] = a[r][v][0];
  return 0;
}

int lanes_of_a_tile(void) { return (int)(ROWS * VECS * LANES); }
