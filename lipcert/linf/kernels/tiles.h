/* All tiles of a problem: packing, order, threads. A tile is ROWS rows of x by WIDTH rows of w, in registers.
 *
 * Panels: x in blocks of ROWS rows, w in blocks of WIDTH rows, both transposed, entry after entry; the last rows of an
 * incomplete block are repeated, so that no value appears that the data do not have.
 */
#ifndef LIPCERT_TILES_H
#define LIPCERT_TILES_H
#include "threads.h"
#include "vector.h"

enum { ROWS = 6, VECS = 2, STRETCH = 512, BESIDE = 4 };
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
  real *packed, *packed2;
} job;

/* Entries from .. to-1 of one tile; the pointers are at entry `from`. */
typedef struct { const real *x, *x2, *w; long row, column, from, to; } place;

/* Takes a tile further, and writes it once `to` is the end. `state` is the tile's own if the kernel wants stretches. */
typedef void tile_kernel(const job *j, const place *at, vec *state);

/* Rows of `from`, entries i0 .. i1-1, as one panel `width` wide. */
static void pack(const real *from, long rows, long inputs, long i0, long i1, long width, real scale, real *to) {
  for (long begin = i0; begin < i1; begin += 16) {
    long end = begin + 16 < i1 ? begin + 16 : i1;
    for (long r = 0; r < width; r++) {
      const real *row = from + (r < rows ? r : rows - 1) * inputs;
      __builtin_prefetch(row + begin + 48); /* more streams than the processor follows */
      for (long i = begin; i < end; i++) {
        __asm__ volatile(""); /* single stores: compilers would scatter, at half the speed */
        to[(i - i0) * width + r] = row[i] * scale;
      }
    }
  }
}

static void pack_task(const void *argument, long index, void *scratch) {
  const job *j = argument;
  long row = index * ROWS, n = j->inputs, at = (j->first + row) * n;
  (void)scratch;
  pack(j->x + at, j->rows - row, n, 0, n, ROWS, j->scale, j->packed + row * n);
  if (j->x2) pack(j->x2 + at, j->rows - row, n, 0, n, ROWS, j->scale, j->packed2 + row * n);
}

/* The valid part of a tile into a (batch, outputs) matrix. */
INLINE void write_tile(const job *j, real *y, tile t, long row, long column) {
  long wide = j->outputs - column < WIDTH ? j->outputs - column : WIDTH;
  for (int r = 0; r < ROWS && row + r < j->rows; r++)
    memcpy(y + (j->first + row + r) * j->outputs + column, t[r], wide * sizeof(real));
}

/* How tiles are taken: `beside` panels of w, in stretches of entries, so that both stay in the nearest caches while all
 * blocks of x pass by; or, with stretch = inputs, one tile after the other. `groups` cuts the blocks for threads. */
typedef struct { const job *j; tile_kernel *kernel; long state, stretch, beside, groups; } order;

static void tiles_task(const void *argument, long index, void *scratch) {
  const order *how = argument;
  const job *j = how->j;
  long n = j->inputs, blocks = (j->rows + ROWS - 1) / ROWS, group = index % how->groups;
  long begin = blocks * group / how->groups, end = blocks * (group + 1) / how->groups;
  long column = index / how->groups * how->beside * WIDTH;
  real *panels = scratch;
  vec *states = (vec *)(panels + how->beside * WIDTH * how->stretch);
  for (long from = 0; from < n; from += how->stretch) {
    long to = from + how->stretch < n ? from + how->stretch : n;
    for (long k = 0; k < how->beside && column + k * WIDTH < j->outputs; k++) {
      long first = column + k * WIDTH;
      pack(j->w + first * n, j->outputs - first, n, from, to, WIDTH, j->scale, panels + k * WIDTH * how->stretch);
    }
    for (long b = begin; b < end; b++)
      for (long k = 0; k < how->beside && column + k * WIDTH < j->outputs; k++) {
        long at = (b * n + from) * ROWS;
        place here = {j->packed + at, j->x2 ? j->packed2 + at : NULL, panels + k * WIDTH * how->stretch,
                      b * ROWS, column + k * WIDTH, from, to};
        how->kernel(j, &here, states + (how->stretch < n ? (b - begin) * how->beside + k : 0) * how->state);
      }
  }
}

/* All tiles; rows of x are packed a few megabytes at a time. `state`: vectors a tile keeps. 0, or 1 without memory. */
static int run_tiles(job *j, tile_kernel *kernel, long state, int stretches, int threads) {
  long panels = (j->outputs + WIDTH - 1) / WIDTH, part = (4L << 20) / j->inputs / ROWS * ROWS;
  if (part < 16 * ROWS) part = 16 * ROWS;
  if (part > j->batch) part = (j->batch + ROWS - 1) / ROWS * ROWS;
  size_t size = (size_t)part * j->inputs * sizeof(real);
  void *packed = NULL, *packed2 = NULL;
  int failed = posix_memalign(&packed, 64, size) || (j->x2 && posix_memalign(&packed2, 64, size));
  j->packed = packed, j->packed2 = packed2;
  for (j->first = 0; !failed && j->first < j->batch; j->first += part) {
    j->rows = j->batch - j->first < part ? j->batch - j->first : part;
    long blocks = (j->rows + ROWS - 1) / ROWS, wanted = threads > 1 ? 2 * threads : 1;
    order how = {j, kernel, state, j->inputs, 1, 1};
    if (stretches && j->inputs > STRETCH) {
      how.stretch = STRETCH;
      how.beside = panels / wanted < 1 ? 1 : panels / wanted > BESIDE ? BESIDE : panels / wanted;
    }
    long columns = (panels + how.beside - 1) / how.beside;
    how.groups = columns >= wanted ? 1 : (wanted + columns - 1) / columns;
    if (how.groups > blocks) how.groups = blocks;
    long states = how.stretch < j->inputs ? ((blocks + how.groups - 1) / how.groups) * how.beside : 1;
    size_t scratch = how.beside * WIDTH * how.stretch * sizeof(real) + states * state * sizeof(vec);
    failed = run_tasks(pack_task, j, blocks, threads, 0) ||
             run_tasks(tiles_task, &how, columns * how.groups, threads, scratch);
  }
  free(packed), free(packed2);
  return failed;
}
#endif
