/* The output of one job: two pipes, each with its spool file. */
#pragma once
#include "loop.h"

enum over { OVER_KILL, OVER_DROP, OVER_BLOCK };

struct output;
struct stream {
    struct source source; /* read end of the job's pipe; fd -1: closed */
    struct output *output;
    int spool;
    uint64_t end;      /* offset of the spool's end */
    uint64_t punched;  /* below this the spool is a hole */
    uint64_t trimmed;  /* a reader has read everything below this */
    uint64_t lost;     /* bytes that the spool's file system refused */
    uint64_t lost_recorded;
    uint64_t owed;     /* bytes that were in the pipe when the job ended; the record waits until they are moved */
    uint32_t block;    /* st_blksize */
    bool paused;       /* `block`: full, and not in epoll until a trim */
};
struct output {
    struct loop *loop;
    struct stream streams[2];
    uint64_t limit; /* bytes; 0: none */
    enum over over;
    bool overran;         /* `kill`: the limit was passed, and the streams are closed */
    struct later changed; /* runs after each turn in which a stream moved or ended */
};

/* Begins with both streams closed. `changed` runs when one of them moves or ends. */
void output_init(struct output *output, struct loop *loop, void (*changed)(struct later *later));
/* Takes the read end of a pipe, and duplicates the descriptor of the spool file. 0 or -errno. */
int stream_open(struct stream *stream, int spool, int pipe_end);
int stream_watch(struct stream *stream);
/* After the job's end: moves what was in the pipe then, unless a reader must make room first. */
void stream_drain(struct stream *stream);
void stream_trim(struct stream *stream, uint64_t offset);
bool output_is_open(const struct output *output);
/* True while a pipe still has bytes from before the job's end. */
bool output_is_owed(const struct output *output);
void output_forgive(struct output *output); /* stop waiting for what is in the pipes */
void output_close(struct output *output);
