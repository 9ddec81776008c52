/* Tasks on threads: `threads` workers claim the indices 0 .. count-1 one by one; what a task computes does not depend
 * on who does it. */
#ifndef LIPCERT_THREADS_H
#define LIPCERT_THREADS_H
#include <pthread.h>
#include <stdlib.h>

typedef void task(const void *job, long index, void *scratch);
typedef struct { task *run; const void *job; long next, count; size_t scratch; } queue;

/* A worker without memory leaves its share to the others. */
static void *worker(void *argument) {
  queue *q = argument;
  void *scratch = NULL;
  if (q->scratch && posix_memalign(&scratch, 64, q->scratch)) return NULL;
  for (long i; (i = __atomic_fetch_add(&q->next, 1, __ATOMIC_RELAXED)) < q->count;) q->run(q->job, i, scratch);
  free(scratch);
  return NULL;
}

/* 0, or 1 where memory ran out. */
static int run_tasks(task *run, const void *job, long count, int threads, size_t scratch) {
  enum { MOST_THREADS = 64 };
  queue q = {run, job, 0, count, scratch};
  pthread_t others[MOST_THREADS];
  int started = 0, wanted = threads > MOST_THREADS ? MOST_THREADS : threads;
  if (wanted > count) wanted = (int)count;
  while (started < wanted - 1 && !pthread_create(&others[started], NULL, worker, &q)) started++;
  worker(&q);
  for (int t = 0; t < started; t++) pthread_join(others[t], NULL);
  return q.next < q.count;
}
#endif
