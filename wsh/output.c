/*
 * Moves output from a job's pipes into its spool files by splice, without a buffer in this process.
 *
 * Past the limit, `kill` ends the job; `block` stops reading until a reader has trimmed; `drop-oldest` punches a hole at the head
 * of the file. A hole keeps the offsets of all later bytes. It is aligned to blocks: in a block that is only partly cut the kernel
 * writes zeros, which a reader could not tell from output. A file system that refuses a byte does not stop the job: the byte is
 * dropped and counted as lost.
 */
#include "output.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

static uint64_t minimum(uint64_t a, uint64_t b) { return a < b ? a : b; }

static void punch(struct stream *stream, uint64_t upto)
{
    upto -= upto % stream->block;
    if (upto > stream->punched &&
        !fallocate(stream->spool, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)stream->punched,
                   (off_t)(upto - stream->punched)))
        stream->punched = upto;
}

static void stream_close(struct stream *stream)
{
    if (stream->source.fd < 0)
        return;
    if (stream->paused)
        close_here(stream->output->loop, &stream->source.fd);
    else
        close_source(stream->output->loop, &stream->source);
    stream->owed = 0;
    stream->paused = false;
    run_later(stream->output->loop, &stream->output->changed);
}

/* Returns how many bytes may be moved now. 0 with *ret_over: the limit has been reached. */
static uint64_t room(struct stream *stream, bool *ret_over)
{
    const struct output *output = stream->output;
    uint64_t chunk = 1 << 20;
    *ret_over = false;
    if (!output->limit || output->over == OVER_DROP)
        return chunk;
    uint64_t used =
        output->over == OVER_KILL ? output->streams[0].end + output->streams[1].end : stream->end - stream->trimmed;
    if (used < output->limit)
        return minimum(chunk, output->limit - used);
    *ret_over = true;
    return 0;
}

/* The file system refuses the bytes: they are counted and dropped, and the job runs on. */
static ssize_t discard(struct stream *stream, size_t size)
{
    static char bin[65536];
    ssize_t got = read(stream->source.fd, bin, minimum(size, sizeof bin));
    if (got > 0)
        stream->lost += (uint64_t)got;
    return got;
}

/* Subtracts the moved bytes from those that the record waits for. */
static ssize_t paid(struct stream *stream, ssize_t moved)
{
    if (moved < 0)
        return -errno;
    stream->owed -= minimum(stream->owed, (uint64_t)moved);
    return moved;
}

/* If no hole can be punched, the spool keeps its beginning; it must not grow for ever. */
static bool holes_fail(const struct stream *stream)
{
    const struct output *output = stream->output;
    return output->limit && output->over == OVER_DROP &&
           stream->end - stream->punched > 2 * output->limit + 2 * (uint64_t)stream->block + (2 << 20);
}

/* Moves one portion. Positive: bytes moved or dropped; 0: end of file; negative: -EAGAIN, or -EDQUOT at the limit. */
static ssize_t move(struct stream *stream)
{
    bool over;
    uint64_t size = room(stream, &over);
    if (holes_fail(stream))
        return paid(stream, discard(stream, size));
    if (over) {
        struct pollfd pipe = {stream->source.fd, POLLIN, 0};
        (void)poll(&pipe, 1, 0);
        return pipe.revents & POLLIN ? -EDQUOT : pipe.revents & POLLHUP ? 0 : -EAGAIN;
    }
    off_t at = (off_t)stream->end;
    ssize_t moved = splice(stream->source.fd, NULL, stream->spool, &at, size, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
    if (moved >= 0)
        stream->end += (uint64_t)moved;
    else if (errno == EAGAIN || errno == EINTR || (moved = discard(stream, size)) < 0)
        return -errno;
    (void)paid(stream, moved);
    const struct output *output = stream->output;
    if (output->limit && output->over == OVER_DROP && stream->end - stream->punched > output->limit + output->limit / 8)
        punch(stream, stream->end - output->limit);
    return moved;
}

static void overrun(struct stream *stream)
{
    struct output *output = stream->output;
    if (output->over == OVER_KILL) {
        output->overran = true;
        output_close(output);
    } else if (!stream->paused) {
        stream->paused = true;
        unwatch(output->loop, &stream->source);
    }
}

static void turn(struct stream *stream)
{
    ssize_t moved = move(stream);
    if (moved == -EAGAIN)
        stream->owed = 0; /* a job can read its own pipe, so the counted bytes may be gone */
    if (moved == -EDQUOT)
        overrun(stream);
    else if (moved == 0 || (moved < 0 && moved != -EAGAIN && moved != -EINTR))
        stream_close(stream);
}

static void stream_readable(struct source *source, uint32_t events)
{
    struct stream *stream = (struct stream *)source;
    (void)events;
    turn(stream);
    run_later(stream->output->loop, &stream->output->changed);
}

void output_init(struct output *output, struct loop *loop, void (*changed)(struct later *later))
{
    *output = (struct output){.loop = loop, .changed = {.run = changed}};
    for (int i = 0; i < 2; i++)
        output->streams[i] =
            (struct stream){.source = {stream_readable, -1}, .output = output, .spool = -1, .block = 4096};
}

int stream_open(struct stream *stream, int spool, int pipe_end)
{
    struct stat what;
    stream->source.fd = pipe_end;
    (void)fcntl(pipe_end, F_SETFL, O_NONBLOCK);
    if (fstat(spool, &what))
        return -errno;
    stream->spool = fcntl(spool, F_DUPFD_CLOEXEC, 3);
    stream->end = stream->trimmed = (uint64_t)what.st_size;
    stream->block = what.st_blksize > 0 ? (uint32_t)what.st_blksize : 4096;
    return stream->spool < 0 ? -errno : 0;
}

int stream_watch(struct stream *stream)
{
    return stream->source.fd < 0 ? 0 : watch(stream->output->loop, &stream->source, EPOLLIN);
}

bool output_is_open(const struct output *output)
{
    return output->streams[0].source.fd >= 0 || output->streams[1].source.fd >= 0;
}

bool output_is_owed(const struct output *output)
{
    for (int i = 0; i < 2; i++)
        if (output->streams[i].source.fd >= 0 && output->streams[i].owed)
            return true;
    return false;
}

void output_forgive(struct output *output)
{
    output->streams[0].owed = output->streams[1].owed = 0;
}

void output_close(struct output *output)
{
    for (int i = 0; i < 2; i++)
        stream_close(&output->streams[i]);
}

/* After the job's end: moves what was in the pipe then, unless a reader must make room first. */
void stream_drain(struct stream *stream)
{
    int waiting = 0;
    if (stream->source.fd < 0)
        return;
    if (!ioctl(stream->source.fd, FIONREAD, &waiting) && waiting > 0)
        stream->owed = (uint64_t)waiting;
    while (stream->source.fd >= 0 && stream->owed && !stream->paused)
        turn(stream);
}

void stream_trim(struct stream *stream, uint64_t offset)
{
    if (stream->spool < 0)
        return;
    if (offset > stream->end)
        offset = stream->end;
    if (offset > stream->trimmed)
        stream->trimmed = offset;
    punch(stream, stream->trimmed);
    if (stream->paused && stream->end - stream->trimmed < stream->output->limit) {
        stream->paused = false;
        if (watch(stream->output->loop, &stream->source, EPOLLIN))
            stream_close(stream);
    }
}
