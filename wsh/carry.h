/* Copies bytes between the caller's descriptors and a job's, in both directions at once (wsh only). */
#pragma once
#include "util.h"

enum { UNREACHABLE = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };
enum { CARRY_BYTES = 16384, CARRY_OUT = 4096 /* PIPE_BUF: a pipe that has room takes it without blocking */ };

enum ours { OURS_NONE, OURS_FROM, OURS_TO };
struct channel {
    int from, to;   /* -1: that end is done */
    enum ours ours; /* the end of a pipe that wsh made; closing it is how the job sees the end of the stream */
    int64_t left; /* bytes that may still be read; negative: no limit yet */
    size_t at, size;
    char bytes[CARRY_BYTES];
};

/* The event that a channel waits for: POLLIN on `from` while its buffer is empty, else POLLOUT on `to`. */
struct pollfd;
void channel_ask(const struct channel *channel, struct pollfd *ret_poll);
/* Does at most one read or one write, if poll has reported `events`. */
void channel_turn(struct channel *channel, short events);
static inline bool channel_done(const struct channel *channel)
{
    return channel->from < 0 && channel->at == channel->size;
}

/* All streams of a job: three pipes, or a terminal. `inside`: the job's ends. */
struct streams {
    struct channel channels[3];
    int count, inside[3];
};
/* Pipes that belong to the job's user; `sock` is connected to its wshd. fail()s. */
void streams_make(struct streams *streams, int sock, const char *uid);
void streams_terminal(struct streams *streams, int master);
/* After the job's end: stops input, and copies only the output that is there now. A process left behind may write for ever. */
void streams_bound(struct streams *streams, bool terminal);

_Noreturn void fail(int status, const char *what, const char *why); /* wsh.c: restores the terminal, prints the error, exits */
