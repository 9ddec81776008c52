/* Distances at p = inf: maxima, where they are, boxes, sorted distances. */
#ifndef LIPCERT_MAXIMA_H
#define LIPCERT_MAXIMA_H
#include "tiles.h"

enum { SPAN = 32, RANKED = 64, TILE = ROWS * VECS };

INLINE void max_range(const real *x, const real *w, long from, long to, tile total) {
  tile a;
  EACH a[r][v] = total[r][v];
  for (long i = from; i < to; i++) {
    vec b[VECS];
    for (int v = 0; v < VECS; v++) b[v] = load(w + i * WIDTH + v * LANES);
    EACH a[r][v] = top(a[r][v], magnitude(x[i * ROWS + r] - b[v]));
  }
  EACH total[r][v] = a[r][v];
}

static void tile_max(const job *j, const place *at, vec *state) {
  tile a = {{{0}}};
  if (at->from) memcpy(a, state, sizeof a);
  max_range(at->x, at->w, 0, at->to - at->from, a);
  if (at->to == j->inputs)
    write_tile(j, j->y, a, at->row, at->column);
  else
    memcpy(state, a, sizeof a);
}

/* Entry of the span where |x - w| has the bits of y: its number + 1, negative where x < w, 0 where y is 0. */
INLINE int32_t locate(const real *x, const real *w, long from, long to, real y) {
  word bits;
  memcpy(&bits, &y, sizeof bits);
  if (bits == 0) return 0;
  long i = from;
  for (; i + LANES <= to; i += LANES) {
    vec d = load(x + i) - load(w + i);
#if BYTES == 64 && REAL_BITS == 32
    unsigned equal = _mm512_cmpeq_epi32_mask((__m512i)magnitude(d), _mm512_set1_epi32(bits));
    if (!equal) continue;
    i += __builtin_ctz(equal);
    break;
#else
    if (any(((ivec)d & MAGNITUDE) == bits)) break;
#endif
  }
  for (; i < to; i++) {
    real d = x[i] - w[i];
    word found;
    memcpy(&found, &d, sizeof found);
    if ((found & MAGNITUDE) == bits) return (int32_t)(d < 0 ? -(i + 1) : i + 1);
  }
  return 0;
}

static void write_where(const job *j, const place *at, tile a, ivec span[ROWS][VECS]) {
  for (int r = 0; r < ROWS && at->row + r < j->rows; r++) {
    const real *x = j->x + (j->first + at->row + r) * j->inputs, *w = j->w + at->column * j->inputs;
    int32_t *where = j->where + (j->first + at->row + r) * j->outputs + at->column;
    long wide = j->outputs - at->column < WIDTH ? j->outputs - at->column : WIDTH;
    for (long o = 0; o < wide; o++) {
      const real *near = w + o * j->inputs + span[r][o / LANES][o % LANES];
      __builtin_prefetch(near), __builtin_prefetch(near + SPAN);
    }
    for (long o = 0; o < wide; o++) {
      long start = span[r][o / LANES][o % LANES], end = start + SPAN < j->inputs ? start + SPAN : j->inputs;
      where[o] = locate(x, w + o * j->inputs, start, end, a[r][o / LANES][o % LANES]);
    }
  }
}

/* Maximum and where it is: remember in which span of SPAN entries the maximum last grew, then search that span. */
static void tile_where(const job *j, const place *at, vec *state) {
  tile a = {{{0}}}, before;
  ivec span[ROWS][VECS] = {{{0}}};
  if (at->from) memcpy(a, state, sizeof a), memcpy(span, state + TILE, sizeof span);
  memcpy(before, a, sizeof a);
  for (long i = at->from; i < at->to; i += SPAN) {
    max_range(at->x, at->w, i - at->from, (i + SPAN < at->to ? i + SPAN : at->to) - at->from, a);
    EACH {
      ivec grew = (ivec)a[r][v] != (ivec)before[r][v];
      span[r][v] = (grew & (word)i) | (~grew & span[r][v]);
      before[r][v] = a[r][v];
    }
  }
  memcpy(state, a, sizeof a), memcpy(state + TILE, span, sizeof span);
  if (at->to < j->inputs) return;
  write_tile(j, j->y, a, at->row, at->column);
  write_where(j, at, a, span);
}

/* With a = u - w and c = w - l: the largest of a and c is the upper end; minus the smallest, if that is negative, the
 * lower. As bits, the signed maximum is the largest, the unsigned the most negative; a NaN ends on top of either. */
static void tile_box(const job *j, const place *at, vec *state) {
  tile most = {{{0}}}, least = {{{0}}};
  if (at->from) memcpy(most, state, sizeof most), memcpy(least, state + TILE, sizeof least);
  for (long i = 0; i < at->to - at->from; i++) {
    vec b[VECS];
    for (int v = 0; v < VECS; v++) b[v] = load(at->w + i * WIDTH + v * LANES);
    EACH {
      vec a = at->x2[i * ROWS + r] - b[v], c = b[v] - at->x[i * ROWS + r];
      most[r][v] = top(top(most[r][v], a), c);
      least[r][v] = bottom(bottom(least[r][v], a), c);
    }
  }
  memcpy(state, most, sizeof most), memcpy(state + TILE, least, sizeof least);
  if (at->to < j->inputs) return;
  EACH {
    ivec nan = (most[r][v] != most[r][v]) | (least[r][v] != least[r][v]), negative = (ivec)least[r][v] < 0;
    least[r][v] = (vec)(((ivec)least[r][v] & MAGNITUDE & negative) | nan);
    most[r][v] = (vec)((ivec)most[r][v] | nan);
  }
  write_tile(j, j->y, least, at->row, at->column);
  write_tile(j, j->y2, most, at->row, at->column);
}

/* --------------------------------------------------------------------------------------------------- sorted distances
 * Largest first, over all lanes at once: one insertion a value that beats the smallest kept. */
INLINE void insert(vec *kept, long count, vec t) {
  for (long k = 0; k < count; k++) {
    vec high = top(kept[k], t);
    t = choose((ivec)kept[k] > (ivec)t, t, kept[k]);
    kept[k] = high;
  }
}

/* The distance of entry i; of a box, its lower or its upper end. Signed maxima from 0: negative numbers drop out. */
INLINE vec entry(const real *x, const real *x2, const real *w, long i, int r, int v, int far) {
  vec b = load(w + i * WIDTH + v * LANES);
  if (!x2) return magnitude(x[i * ROWS + r] - b);
  vec above = x2[i * ROWS + r] - b, below = b - x[i * ROWS + r];
  return far ? top(top(above, below), splat(0)) : top(top(-above, -below), splat(0));
}

/* The count-th largest of the maxima of chunks is no larger than the count-th largest entry: most fall below it. */
INLINE void ranked(const job *j, const real *x, const real *x2, const real *w, int r, int v, int far, vec *kept) {
  for (long k = 0; k < j->count; k++) kept[k] = splat(0);
  for (long c = 0; c < j->inputs; c += RANKED) {
    vec most = splat(0);
    for (long i = c; i < c + RANKED && i < j->inputs; i++) most = top(most, entry(x, x2, w, i, r, v, far));
    if (exceeds(most, kept[j->count - 1])) insert(kept, j->count, most);
  }
  vec floor = (vec)((ivec)kept[j->count - 1] - 1);
  for (long k = 0; k < j->count; k++) kept[k] = splat(0);
  for (long i = 0; i < j->inputs; i++) {
    vec t = entry(x, x2, w, i, r, v, far);
    if (exceeds(t, top(floor, kept[j->count - 1]))) insert(kept, j->count, t);
  }
}

static void tile_sorted(const job *j, const place *at, vec *kept) {
  EACH for (int far = 0; far < (at->x2 ? 2 : 1); far++) {
    long row = at->row + r, column = at->column + v * LANES;
    if (row >= j->rows || column >= j->outputs) continue;
    ranked(j, at->x, at->x2, at->w, r, v, far, kept);
    real *y = (far ? j->y2 : j->y) + ((j->first + row) * j->outputs + column) * j->count;
    for (long o = 0; o < LANES && column + o < j->outputs; o++)
      for (long k = 0; k < j->count; k++) y[o * j->count + k] = kept[k][o];
  }
}
#endif
