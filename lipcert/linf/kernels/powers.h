/* Distances at finite p: (sum |x - w|^p)^(1/p). */
#ifndef LIPCERT_POWERS_H
#define LIPCERT_POWERS_H
#include "maxima.h"

enum { CHUNK = 16, PARTIAL = 256, TOGETHER = 3 }; /* entries; entries; rows of a tile whose powers are taken at once */

/* u^whole by squaring; |u|^p by logarithms where whole is 0. */
INLINE void power(vec *u, int count, int whole, real p) {
  vec one[MOST];
  if (!whole) {
    real_power(u, count, p);
    return;
  }
  ALL one[k] = u[k];
  for (int bit = whole < 2 ? 0 : 1 << (30 - __builtin_clz(whole)); bit; bit >>= 1) {
    ALL u[k] = u[k] * u[k];
    if (whole & bit)
      ALL u[k] = u[k] * one[k];
  }
}

/* sum of (|x - w| * unit)^p; without unit the data are scaled already. Partial sums keep the rounding error small. */
INLINE void sum_range(const real *x, const real *w, long inputs, tile unit, tile total, int whole, real p) {
  unsigned mode = flush_tiny();
  EACH total[r][v] = splat(0);
  for (long i0 = 0; i0 < inputs; i0 += PARTIAL) {
    tile s = {{{0}}};
    for (long i = i0; i < inputs && i < i0 + PARTIAL; i++) {
      vec b[VECS];
      for (int v = 0; v < VECS; v++) b[v] = load(w + i * WIDTH + v * LANES);
      for (int h = 0; h < ROWS; h += TOGETHER) {
        vec u[TOGETHER * VECS];
        for (int k = 0; k < TOGETHER * VECS; k++) {
          u[k] = x[i * ROWS + h + k / VECS] - b[k % VECS];
          if (whole & 1) u[k] = magnitude(u[k]);
          if (unit) u[k] = u[k] * unit[h + k / VECS][k % VECS];
        }
        power(u, TOGETHER * VECS, whole, p);
        for (int k = 0; k < TOGETHER * VECS; k++) s[h + k / VECS][k % VECS] += u[k];
      }
    }
    EACH total[r][v] += s[r][v];
  }
  restore(mode);
}

INLINE vec root(vec sum, const job *j) {
  if (j->whole != 1) real_power(&sum, 1, 1 / j->p);
  return sum;
}

/* Sums relative to the largest distance: right for all data. Only entries that come near it are looked at twice. */
static void tile_stable(const job *j, const place *at, vec *room) {
  const real *x = at->x, *w = at->w;
  tile largest = {{{0}}}, unit, least, total = {{{0}}};
  long chunks = (j->inputs + CHUNK - 1) / CHUNK;
  for (long c = 0; c < chunks; c++) {
    tile a = {{{0}}};
    max_range(x, w, c * CHUNK, (c + 1) * CHUNK < j->inputs ? (c + 1) * CHUNK : j->inputs, a);
    EACH {
      room[(c * ROWS + r) * VECS + v] = a[r][v];
      largest[r][v] = top(largest[r][v], a[r][v]);
    }
  }
  EACH {
    unit[r][v] = 1 / largest[r][v];
    unit[r][v] = choose(unit[r][v] < REAL_MAX, unit[r][v], splat(REAL_MAX));
    least[r][v] = largest[r][v] * j->ratio;
  }
  if (j->ratio == 0)
    sum_range(x, w, j->inputs, unit, total, j->whole, j->p);
  else
    for (long c = 0; c < chunks; c++) EACH {
      if (!exceeds(room[(c * ROWS + r) * VECS + v], least[r][v])) continue;
      for (long i = c * CHUNK; i < j->inputs && i < (c + 1) * CHUNK; i++) {
        vec t = magnitude(x[i * ROWS + r] - load(w + i * WIDTH + v * LANES));
        if (!exceeds(t, least[r][v])) continue;
        t = t * unit[r][v];
        real_power(&t, 1, j->p);
        total[r][v] += t;
      }
    }
  EACH {
    vec m = largest[r][v], y = root(total[r][v], j) / unit[r][v];
    total[r][v] = choose((m > 0) & (m <= REAL_MAX), y, m) / j->scale;
  }
  write_tile(j, j->y, total, at->row, at->column);
}

/* Sums of the scaled data as they are: twice as fast, and right unless a sum leaves the range of the numbers. */
INLINE void tile_direct(const job *j, const place *at, vec *room, int whole) {
  tile total;
  ivec wrong = {0};
  sum_range(at->x, at->w, j->inputs, NULL, total, whole, j->p);
  EACH wrong |= ~((total[r][v] > (real)0x1p-90) & (total[r][v] < (real)0x1p110));
  if (any(wrong)) {
    tile_stable(j, at, room);
    return;
  }
  EACH total[r][v] = root(total[r][v], j) / j->scale;
  write_tile(j, j->y, total, at->row, at->column);
}

static void tile_direct2(const job *j, const place *at, vec *room) { tile_direct(j, at, room, 2); }
static void tile_direct8(const job *j, const place *at, vec *room) { tile_direct(j, at, room, 8); }
static void tile_direct_whole(const job *j, const place *at, vec *room) { tile_direct(j, at, room, j->whole); }
static void tile_direct_real(const job *j, const place *at, vec *room) { tile_direct(j, at, room, 0); }
#endif
