/* 3x3 convolutions with one pixel of zeros around, stride 1, by Winograd's F(4x4, 3x3). Called from winograd.py.
 *
 * Images are (batch, height, width, channels) in memory, channels a multiple of LANES; kernels come transformed, 36
 * matrices (inputs, outputs). With x, y, g windows of images, v, m their transforms at the 36 points p:
 *
 *     forward     v = B^T x B,  m_p = v_p u_p,  y = A^T m A + bias
 *     backward    m = A g A^T,  du_p += v_p^T m_p,  v_p = m_p u_p^T,  x += B v B^T
 *
 * BLOCK tiles at a time go through all three stages, small enough to stay in cache. Where `swapped` is given, y is
 * followed by MinMax while it is in registers: channel c against c + outputs / 2, and swapped (batch, height, width,
 * outputs / 2) says whether the second was the larger. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <string.h>

#include "threads.h"

#if defined(__AVX512F__)
enum { BYTES = 64, ROWS = 8 };
#else
enum { BYTES = 32, ROWS = 4 };
#endif
/* The transforms of a block are SLICE numbers apart from point to point; a multiple of a page would put all 36 into the
 * same few lines of the cache. */
enum { LANES = BYTES / sizeof(float), POINTS = 36, BLOCK = 32 };
#define SLICE(channels) ((channels) * BLOCK + 2 * LANES)
#define INLINE static inline __attribute__((always_inline))
typedef float vec __attribute__((vector_size(BYTES)));
typedef int32_t ivec __attribute__((vector_size(BYTES)));
typedef int8_t flags __attribute__((vector_size(LANES)));
INLINE vec load(const float *from) { vec a; memcpy(&a, from, BYTES); return a; }
INLINE void store(float *to, vec a) { memcpy(to, &a, BYTES); }

long channels_of_a_vector(void) { return LANES; }

typedef struct {
  const float *x, *grad, *u, *bias; /* u: of the product at hand, forward 36 x inputs x outputs, backward transposed */
  float *y, *dx, *du, *dbias;       /* du, dbias: one sum for each part of the batch */
  int8_t *swapped;
  long batch, height, width, inputs, outputs, parts;
} job;

/* ------------------------------------------------------------------------------------------------ products of matrices
 * c (rows x n) = or += a b with b (depth x n), entry (r, k) of a at r * ar + k * ak; n is a multiple of LANES. */
#define TILE(VECS)                                                                                                     \
  INLINE void tile##VECS(const float *a, long ar, long ak, const float *b, long n, long depth, float *c, int add) {    \
    vec sum[ROWS][VECS];                                                                                               \
    for (int r = 0; r < ROWS; r++)                                                                                     \
      for (int v = 0; v < VECS; v++) sum[r][v] = add ? load(c + r * n + v * LANES) : (vec){0};                         \
    for (long k = 0; k < depth; k++) {                                                                                 \
      vec row[VECS];                                                                                                   \
      for (int v = 0; v < VECS; v++) row[v] = load(b + k * n + v * LANES);                                             \
      for (int r = 0; r < ROWS; r++) {                                                                                 \
        vec entry = a[r * ar + k * ak] - (vec){0};                                                                     \
        for (int v = 0; v < VECS; v++) sum[r][v] += entry * row[v];                                                    \
      }                                                                                                                \
    }                                                                                                                  \
    for (int r = 0; r < ROWS; r++)                                                                                     \
      for (int v = 0; v < VECS; v++) store(c + r * n + v * LANES, sum[r][v]);                                          \
  }
TILE(1)
TILE(2)

static void product(const float *a, long ar, long ak, const float *b, long rows, long n, long depth, float *c, int add) {
  for (long r = 0; r < rows; r += ROWS) {
    long v = 0;
    for (; v + 2 * LANES <= n; v += 2 * LANES) tile2(a + r * ar, ar, ak, b + v, n, depth, c + r * n + v, add);
    if (v < n) tile1(a + r * ar, ar, ak, b + v, n, depth, c + r * n + v, add);
  }
}

/* ---------------------------------------------------------------------------------------- transforms in one dimension
 * Six or four numbers to six or four, which go `s` apart; names say what they multiply by. */
INLINE void times_bt(const vec *d, vec *o, long s) {
  vec a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
  o[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
  o[s] = a + b, o[2 * s] = a - b, o[3 * s] = c + e, o[4 * s] = c - e;
  o[5 * s] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

INLINE void times_b(const vec *m, vec *o, long s) {
  vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], t = m[3] - m[4];
  o[0] = 4.0f * m[0];
  o[s] = -4.0f * q - 2.0f * t + 4.0f * m[5];
  o[2 * s] = -5.0f * m[0] - 4.0f * p - r;
  o[3 * s] = q + 2.0f * t - 5.0f * m[5];
  o[4 * s] = m[0] + p + r;
  o[5 * s] = m[5];
}

INLINE void times_at(const vec *m, vec *o, long s) {
  vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], t = m[3] - m[4];
  o[0] = m[0] + p + r, o[s] = q + 2.0f * t, o[2 * s] = p + 4.0f * r, o[3 * s] = q + 8.0f * t + m[5];
}

INLINE void times_a(const vec *y, vec *o, long s) {
  vec a = y[0] + y[2], b = y[1] + y[3], c = y[0] + 4.0f * y[2], d = 2.0f * y[1] + 8.0f * y[3];
  o[0] = y[0], o[s] = a + b, o[2 * s] = a - b, o[3 * s] = c + d, o[4 * s] = c - d, o[5 * s] = y[3];
}

/* ---------------------------------------------------------------------------------------- transforms of a block
 * `tiles` from number `first` on, one vector of channels at a time; transforms are POINTS slices of BLOCK x channels. */
typedef struct { long first, pixel, row, column; } place; /* of a tile: first pixel of its image, and of the tile */

INLINE long across(const job *j) { return (j->width + 3) / 4; }
INLINE long per_image(const job *j) { return (j->height + 3) / 4 * across(j); }
INLINE long all_tiles(const job *j) { return j->batch * per_image(j); }
INLINE place locate(const job *j, long tile) {
  long inside = tile % per_image(j), row = inside / across(j) * 4, column = inside % across(j) * 4;
  long first = tile / per_image(j) * j->height * j->width;
  return (place){first, first + row * j->width + column, row, column};
}
/* Rows or columns of a tile that lie in the image. */
INLINE long reach(long from, long size) { return size - from < 4 ? size - from : 4; }

static void transform_input(const job *j, long first, long tiles, float *v) {
  long channels = j->inputs;
  for (long t = 0; t < tiles; t++) {
    place at = locate(j, first + t);
    for (long c = 0; c < channels; c += LANES) {
      vec half[6][6], out[6];
      for (int q = 0; q < 6; q++) {
        vec d[6];
        for (int p = 0; p < 6; p++) {
          long row = at.row + p - 1, column = at.column + q - 1;
          int inside = row >= 0 && row < j->height && column >= 0 && column < j->width;
          d[p] = inside ? load(j->x + (at.first + row * j->width + column) * channels + c) : (vec){0};
        }
        times_bt(d, &half[0][q], 6);
      }
      for (int p = 0; p < 6; p++) {
        times_bt(half[p], out, 1);
        for (int q = 0; q < 6; q++) store(v + (p * 6 + q) * SLICE(channels) + t * channels + c, out[q]);
      }
    }
  }
}

/* The transpose of `transform_input`, added to dx. */
static void gather_input(const job *j, const float *v, long first, long tiles) {
  long channels = j->inputs;
  for (long t = 0; t < tiles; t++) {
    place at = locate(j, first + t);
    for (long c = 0; c < channels; c += LANES) {
      vec half[6][6], out[6];
      for (int q = 0; q < 6; q++) {
        vec d[6];
        for (int p = 0; p < 6; p++) d[p] = load(v + (p * 6 + q) * SLICE(channels) + t * channels + c);
        times_b(d, &half[0][q], 6);
      }
      for (int p = 0; p < 6; p++) {
        long row = at.row + p - 1;
        times_b(half[p], out, 1);
        for (int q = 0; q < 6; q++) {
          long column = at.column + q - 1;
          if (row < 0 || row >= j->height || column < 0 || column >= j->width) continue;
          float *to = j->dx + (at.first + row * j->width + column) * channels + c;
          store(to, load(to) + out[q]);
        }
      }
    }
  }
}

INLINE void tile_output(const job *j, const float *m, long t, long c, vec out[4][4]) {
  vec half[4][6], bias = j->bias ? load(j->bias + c) : (vec){0};
  for (int q = 0; q < 6; q++) {
    vec d[6];
    for (int p = 0; p < 6; p++) d[p] = load(m + (p * 6 + q) * SLICE(j->outputs) + t * j->outputs + c);
    times_at(d, &half[0][q], 6);
  }
  for (int p = 0; p < 4; p++) {
    times_at(half[p], out[p], 1);
    for (int q = 0; q < 4; q++) out[p][q] += bias;
  }
}

static void transform_output(const job *j, const float *m, long first, long tiles) {
  long channels = j->outputs, half = channels / 2;
  for (long t = 0; t < tiles; t++) {
    place at = locate(j, first + t);
    long down = reach(at.row, j->height), right = reach(at.column, j->width);
    for (long c = 0; c < (j->swapped ? half : channels); c += LANES) {
      vec one[4][4], two[4][4];
      tile_output(j, m, t, c, one);
      if (j->swapped) tile_output(j, m, t, c + half, two);
      for (long p = 0; p < down; p++)
        for (long q = 0; q < right; q++) {
          long pixel = at.pixel + p * j->width + q;
          float *y = j->y + pixel * channels + c;
          if (!j->swapped) {
            store(y, one[p][q]);
            continue;
          }
          ivec less = one[p][q] < two[p][q], change = ((ivec)one[p][q] ^ (ivec)two[p][q]) & less;
          flags f = __builtin_convertvector(-less, flags);
          store(y, (vec)((ivec)one[p][q] ^ change));
          store(y + half, (vec)((ivec)two[p][q] ^ change));
          memcpy(j->swapped + pixel * half + c, &f, LANES);
        }
    }
  }
}

INLINE void tile_gradient(const vec in[4][4], long channels, float *m) {
  vec half[6][4], out[6];
  for (int q = 0; q < 4; q++) {
    vec d[4] = {in[0][q], in[1][q], in[2][q], in[3][q]};
    times_a(d, &half[0][q], 4);
  }
  for (int p = 0; p < 6; p++) {
    times_a(half[p], out, 1);
    for (int q = 0; q < 6; q++) store(m + (p * 6 + q) * SLICE(channels), out[q]);
  }
}

/* The transpose of `transform_output`; adds the gradient of the bias. */
static void transform_gradient(const job *j, long first, long tiles, float *m, float *dbias) {
  long channels = j->outputs, half = channels / 2;
  for (long t = 0; t < tiles; t++) {
    place at = locate(j, first + t);
    long down = reach(at.row, j->height), right = reach(at.column, j->width);
    for (long c = 0; c < (j->swapped ? half : channels); c += LANES) {
      vec one[4][4] = {0}, two[4][4] = {0}, sum = {0}, other = {0};
      for (long p = 0; p < down; p++)
        for (long q = 0; q < right; q++) {
          long pixel = at.pixel + p * j->width + q;
          const float *g = j->grad + pixel * channels + c;
          one[p][q] = load(g);
          if (j->swapped) {
            flags f;
            memcpy(&f, j->swapped + pixel * half + c, LANES);
            two[p][q] = load(g + half);
            ivec change = ((ivec)one[p][q] ^ (ivec)two[p][q]) & -__builtin_convertvector(f, ivec);
            one[p][q] = (vec)((ivec)one[p][q] ^ change);
            two[p][q] = (vec)((ivec)two[p][q] ^ change);
            other += two[p][q];
          }
          sum += one[p][q];
        }
      tile_gradient(one, channels, m + t * channels + c);
      store(dbias + c, load(dbias + c) + sum);
      if (!j->swapped) continue;
      tile_gradient(two, channels, m + t * channels + c + half);
      store(dbias + c + half, load(dbias + c + half) + other);
    }
  }
}

/* ------------------------------------------------------------------------------------------------------ whole images */
static void forward_task(const void *argument, long index, void *scratch) {
  const job *j = argument;
  long first = index * BLOCK, left = all_tiles(j) - first, tiles = left < BLOCK ? left : BLOCK;
  float *v = scratch, *m = v + POINTS * SLICE(j->inputs);
  if (tiles < BLOCK) memset(v, 0, sizeof(float) * POINTS * SLICE(j->inputs));
  transform_input(j, first, tiles, v);
  for (int p = 0; p < POINTS; p++)
    product(v + p * SLICE(j->inputs), j->inputs, 1, j->u + p * j->inputs * j->outputs, BLOCK, j->outputs, j->inputs,
            m + p * SLICE(j->outputs), 0);
  transform_output(j, m, first, tiles);
}

static size_t scratch_of(const job *j) { return sizeof(float) * POINTS * (SLICE(j->inputs) + SLICE(j->outputs)); }

/* swapped: NULL, or where MinMax is to leave its mask; outputs is a multiple of 2 LANES then. 1 where memory ran out. */
int winograd_forward(const float *x, const float *u, const float *bias, float *y, int8_t *swapped, long batch,
                     long height, long width, long inputs, long outputs, int threads) {
  job j = {.x = x, .u = u, .bias = bias, .y = y, .swapped = swapped, .batch = batch, .height = height, .width = width,
           .inputs = inputs, .outputs = outputs};
  return run_tasks(forward_task, &j, (all_tiles(&j) + BLOCK - 1) / BLOCK, threads, scratch_of(&j));
}

/* A part of the batch: whole images, so that no two parts add to one pixel of dx. */
static void backward_task(const void *argument, long index, void *scratch) {
  const job *j = argument;
  long images = (j->batch + j->parts - 1) / j->parts, begin = index * images, weights = j->inputs * j->outputs;
  long end = begin + images < j->batch ? begin + images : j->batch, size = j->height * j->width * j->inputs;
  float *v = scratch, *m = v + POINTS * SLICE(j->inputs);
  float *du = j->du + index * POINTS * weights, *dbias = j->dbias + index * j->outputs;
  memset(du, 0, sizeof(float) * POINTS * weights);
  memset(dbias, 0, sizeof(float) * j->outputs);
  if (begin >= end) return;
  if (j->dx) memset(j->dx + begin * size, 0, sizeof(float) * (end - begin) * size);
  for (long first = begin * per_image(j); first < end * per_image(j); first += BLOCK) {
    long left = end * per_image(j) - first, tiles = left < BLOCK ? left : BLOCK;
    if (tiles < BLOCK) memset(scratch, 0, scratch_of(j));
    transform_input(j, first, tiles, v);
    transform_gradient(j, first, tiles, m, dbias);
    for (int p = 0; p < POINTS; p++) {
      float *vp = v + p * SLICE(j->inputs), *mp = m + p * SLICE(j->outputs);
      product(vp, 1, j->inputs, mp, j->inputs, j->outputs, BLOCK, du + p * weights, 1);
      if (j->dx) product(mp, j->outputs, 1, j->u + p * weights, BLOCK, j->inputs, j->outputs, vp, 0);
    }
    if (j->dx) gather_input(j, v, first, tiles);
  }
}

/* grad: of y. u: 36 x outputs x inputs. dx: NULL where it is not wanted. du, dbias: one for each part, to be summed. */
int winograd_backward(const float *grad, const float *x, const float *u, const int8_t *swapped, float *dx, float *du,
                      float *dbias, long batch, long height, long width, long inputs, long outputs, long parts,
                      int threads) {
  job j = {.x = x, .grad = grad, .u = u, .swapped = (int8_t *)swapped, .dx = dx, .du = du, .dbias = dbias,
           .batch = batch, .height = height, .width = width, .inputs = inputs, .outputs = outputs, .parts = parts};
  return run_tasks(backward_task, &j, parts, threads, scratch_of(&j));
}
