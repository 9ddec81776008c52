/* Distances: maxima, power sums, boxes. One tile is ROWS inputs by WIDTH outputs in registers, over all I entries.
 *
 * Panels: x in blocks of ROWS rows, w in blocks of WIDTH rows, both transposed, entry after entry; the last rows of an
 * incomplete block are repeated, so that no value appears that the data do not have.
 */
#ifndef LIPCERT_FORWARD_H
#define LIPCERT_FORWARD_H
#include "vector.h"

enum { ROWS = 6, VECS = 2, CHUNK = 16, SPAN = 32, PARTIAL = 256, TOGETHER = 3, RANKED = 64 };
#define WIDTH (VECS * LANES)
#define EACH for (int r = 0; r < ROWS; r++) for (int v = 0; v < VECS; v++)
typedef vec tile[ROWS][VECS];

typedef struct {
  const real *x, *x2, *w; /* x2: upper ends of boxes */
  real *y, *y2;
  int32_t *where; /* farthest entry + 1, negative where x is below w there */
  long batch, outputs, inputs;
  real p;
  int whole;         /* p where it is a small integer, else 0 */
  real scale, ratio; /* of the data, a power of two; terms below ratio times the largest are dropped */
  long count;        /* sorted distances */
  long first, rows;  /* the part of the batch that is packed */
  long groups;       /* pieces its blocks are cut into */
  real *packed, *packed2;
} job;

typedef void tile_kernel(const job *j, const real *x, const real *x2, const real *w, long row, long column, vec *room);

/* ---------------------------------------------------------------------------------------------------------- panels */
static void pack(const real *from, long rows, long inputs, long width, real scale, real *to) {
  for (long i0 = 0; i0 < inputs; i0 += 16) {
    long i1 = i0 + 16 < inputs ? i0 + 16 : inputs;
    for (long r = 0; r < width; r++) {
      const real *row = from + (r < rows ? r : rows - 1) * inputs;
      __builtin_prefetch(row + i0 + 48); /* more streams than the processor follows */
      for (long i = i0; i < i1; i++) {
        __asm__ volatile(""); /* single stores: compilers would scatter, at half the speed */
        to[i * width + r] = row[i] * scale;
      }
    }
  }
}

static void pack_task(const void *argument, long index, void *scratch) {
  const job *j = argument;
  long row = index * ROWS;
  (void)scratch;
  pack(j->x + (j->first + row) * j->inputs, j->rows - row, j->inputs, ROWS, j->scale, j->packed + row * j->inputs);
  if (j->x2)
    pack(j->x2 + (j->first + row) * j->inputs, j->rows - row, j->inputs, ROWS, j->scale, j->packed2 + row * j->inputs);
}

/* The valid part of a tile into a (batch, outputs) matrix. */
INLINE void write_tile(const job *j, real *y, tile t, long row, long column) {
  long wide = j->outputs - column < WIDTH ? j->outputs - column : WIDTH;
  for (int r = 0; r < ROWS && row + r < j->rows; r++)
    memcpy(y + (j->first + row + r) * j->outputs + column, t[r], wide * sizeof(real));
}

/* ---------------------------------------------------------------------------------------------------------- maxima */
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

static void tile_max(const job *j, const real *x, const real *x2, const real *w, long row, long column, vec *room) {
  tile a = {{{0}}};
  (void)x2, (void)room;
  max_range(x, w, 0, j->inputs, a);
  write_tile(j, j->y, a, row, column);
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

/* Maximum and where it is: remember in which span of SPAN entries the maximum last grew, then search that span. */
static void tile_where(const job *j, const real *x, const real *x2, const real *w, long row, long column, vec *room) {
  tile a = {{{0}}}, before = {{{0}}};
  ivec span[ROWS][VECS] = {{{0}}};
  (void)x2, (void)room;
  for (long i = 0; i < j->inputs; i += SPAN) {
    max_range(x, w, i, i + SPAN < j->inputs ? i + SPAN : j->inputs, a);
    EACH {
      ivec grew = (ivec)a[r][v] != (ivec)before[r][v];
      span[r][v] = (grew & (word)i) | (~grew & span[r][v]);
      before[r][v] = a[r][v];
    }
  }
  write_tile(j, j->y, a, row, column);
  for (int r = 0; r < ROWS && row + r < j->rows; r++) {
    const real *from = j->x + (j->first + row + r) * j->inputs;
    for (long o = 0; o < WIDTH && column + o < j->outputs; o++) {
      const real *at = j->w + (column + o) * j->inputs + span[r][o / LANES][o % LANES];
      __builtin_prefetch(at), __builtin_prefetch(at + SPAN);
    }
    for (long o = 0; o < WIDTH && column + o < j->outputs; o++) {
      long start = span[r][o / LANES][o % LANES], end = start + SPAN < j->inputs ? start + SPAN : j->inputs;
      j->where[(j->first + row + r) * j->outputs + column + o] =
          locate(from, j->w + (column + o) * j->inputs, start, end, a[r][o / LANES][o % LANES]);
    }
  }
}

/* With a = u - w and c = w - l: the largest of a, c is the upper end; the lower end is minus the smallest, if negative.
 * As bits: the signed maximum is the largest, the unsigned maximum the most negative. A NaN ends up on top of either. */
static void tile_box(const job *j, const real *lower, const real *upper, const real *w, long row, long column,
                     vec *room) {
  tile most = {{{0}}}, least = {{{0}}};
  (void)room;
  for (long i = 0; i < j->inputs; i++) {
    vec b[VECS];
    for (int v = 0; v < VECS; v++) b[v] = load(w + i * WIDTH + v * LANES);
    EACH {
      vec a = upper[i * ROWS + r] - b[v], c = b[v] - lower[i * ROWS + r];
      most[r][v] = top(top(most[r][v], a), c);
      least[r][v] = bottom(bottom(least[r][v], a), c);
    }
  }
  EACH {
    ivec nan = (most[r][v] != most[r][v]) | (least[r][v] != least[r][v]), negative = (ivec)least[r][v] < 0;
    least[r][v] = (vec)(((ivec)least[r][v] & MAGNITUDE & negative) | nan);
    most[r][v] = (vec)((ivec)most[r][v] | nan);
  }
  write_tile(j, j->y, least, row, column);
  write_tile(j, j->y2, most, row, column);
}

/* ------------------------------------------------------------------------------------------------------ power sums
 * u^whole by squaring; |u|^p by logarithms where whole is 0. */
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
static void tile_stable(const job *j, const real *x, const real *x2, const real *w, long row, long column, vec *room) {
  tile largest = {{{0}}}, unit, least, total = {{{0}}};
  long chunks = (j->inputs + CHUNK - 1) / CHUNK;
  (void)x2;
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
  write_tile(j, j->y, total, row, column);
}

/* Sums of the scaled data as they are: twice as fast, and right unless a sum leaves the range of the numbers. */
INLINE void tile_direct(const job *j, const real *x, const real *w, long row, long column, vec *room, int whole) {
  tile total;
  ivec wrong = {0};
  sum_range(x, w, j->inputs, NULL, total, whole, j->p);
  EACH wrong |= ~((total[r][v] > (real)0x1p-90) & (total[r][v] < (real)0x1p110));
  if (any(wrong)) {
    tile_stable(j, x, NULL, w, row, column, room);
    return;
  }
  EACH total[r][v] = root(total[r][v], j) / j->scale;
  write_tile(j, j->y, total, row, column);
}

#define TILE_DIRECT(name, whole)                                                                                            \
  static void name(const job *j, const real *x, const real *x2, const real *w, long row, long column, vec *room) {     \
    (void)x2;                                                                                                          \
    tile_direct(j, x, w, row, column, room, whole);                                                                    \
  }
TILE_DIRECT(tile_direct2, 2)
TILE_DIRECT(tile_direct8, 8)
TILE_DIRECT(tile_direct_whole, j->whole)
TILE_DIRECT(tile_direct_real, 0)

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

static void tile_sorted(const job *j, const real *x, const real *x2, const real *w, long row, long column, vec *kept) {
  EACH for (int far = 0; far < (x2 ? 2 : 1); far++) {
    if (row + r >= j->rows || column + v * LANES >= j->outputs) continue;
    ranked(j, x, x2, w, r, v, far, kept);
    real *y = (far ? j->y2 : j->y) + ((j->first + row + r) * j->outputs + column + v * LANES) * j->count;
    for (long o = 0; o < LANES && column + v * LANES + o < j->outputs; o++)
      for (long k = 0; k < j->count; k++) y[o * j->count + k] = kept[k][o];
  }
}

/* ----------------------------------------------------------------------------------------------------- all the tiles */
typedef struct { const job *j; tile_kernel *kernel; } tiles;

static void tiles_task(const void *argument, long index, void *scratch) {
  const tiles *all = argument;
  const job *j = all->j;
  long column = index / j->groups * WIDTH, group = index % j->groups;
  long blocks = (j->rows + ROWS - 1) / ROWS, from = blocks * group / j->groups, to = blocks * (group + 1) / j->groups;
  real *panel = scratch;
  vec *room = (vec *)(panel + WIDTH * j->inputs);
  pack(j->w + column * j->inputs, j->outputs - column, j->inputs, WIDTH, j->scale, panel);
  for (long b = from; b < to; b++) {
    long at = b * ROWS * j->inputs;
    all->kernel(j, j->packed + at, j->x2 ? j->packed2 + at : NULL, panel, b * ROWS, column, room);
  }
}

/* All tiles of a problem; rows of x are packed a few megabytes at a time. 0, or 1 without memory. */
static int run_tiles(job *j, tile_kernel *kernel, long room, int threads) {
  long panels = (j->outputs + WIDTH - 1) / WIDTH, part = (4L << 20) / j->inputs / ROWS * ROWS;
  if (part < 16 * ROWS) part = 16 * ROWS;
  if (part > j->batch) part = (j->batch + ROWS - 1) / ROWS * ROWS;
  size_t size = (size_t)part * j->inputs * sizeof(real), scratch = (WIDTH * j->inputs + room * LANES) * sizeof(real);
  void *packed = NULL, *packed2 = NULL;
  int failed = posix_memalign(&packed, 64, size) || (j->x2 && posix_memalign(&packed2, 64, size));
  j->packed = packed, j->packed2 = packed2;
  for (j->first = 0; !failed && j->first < j->batch; j->first += part) {
    j->rows = j->batch - j->first < part ? j->batch - j->first : part;
    long blocks = (j->rows + ROWS - 1) / ROWS;
    j->groups = panels >= 2 * threads || threads == 1 ? 1 : (2 * threads + panels - 1) / panels;
    if (j->groups > blocks) j->groups = blocks;
    tiles all = {j, kernel};
    failed = run_tasks(pack_task, j, blocks, threads, 0) ||
             run_tasks(tiles_task, &all, panels * j->groups, threads, scratch);
  }
  free(packed), free(packed2);
  return failed;
}
#endif
