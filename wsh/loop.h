/*
 * The lowest layer of pid 1 at work: one epoll, one handler a source, nothing allocated while output flows.
 *
 * The layers are loop, output, jobs, spawn, requests, serve. Each calls those before it and no other. What a lower one has to
 * tell a higher one it leaves as a mark: a `later` runs at the end of the turn, and `serve` looks at the marks of the jobs once
 * a turn. Called upward instead, a handler could free what its caller still holds.
 */
#pragma once
#include <sys/epoll.h>
#include "util.h"

/* What epoll gives back: every source begins with one. */
struct source {
    void (*handle)(struct source *source, uint32_t events);
    int fd;
};
/* Work for the end of this turn. However often it is asked for, it runs once. */
struct later {
    void (*run)(struct later *later);
    struct later *next;
    bool due;
};
struct loop {
    int epoll;
    struct later *first_later, **last_later;
    bool freed; /* a descriptor was closed in this turn; accept4 may succeed again */
};

int loop_open(struct loop *loop);
/* One event, then the work that it left for later. False: `timeout_ms` passed without an event. */
bool loop_turn(struct loop *loop, int timeout_ms);
void run_later(struct loop *loop, struct later *later);

int watch(struct loop *loop, struct source *source, uint32_t events);
void rewatch(struct loop *loop, struct source *source, uint32_t events);
void unwatch(struct loop *loop, struct source *source);
void close_source(struct loop *loop, struct source *source); /* idempotent */
void close_here(struct loop *loop, int *fd);                 /* idempotent */
