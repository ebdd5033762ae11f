/* pid 1 at work: one epoll, one handler a source, nothing allocated while output flows. From here on nobody may die. */
#pragma once
#include <signal.h>
#include <sys/epoll.h>
#include <sys/types.h>
#include "launch.h"

enum { JOB_NAME = 64, MAX_JOBS = 4096, MAX_CLIENTS = 512, PACKET = 1 << 20, MAX_FDS = 8 };
enum io { IO_SPOOL, IO_DIRECT, IO_TERMINAL };
enum over { OVER_KILL, OVER_DROP, OVER_BLOCK };
enum ending { RUNNING, EXITED, SIGNALED, OVERRAN };

/* What epoll hands back: every source begins with one. */
struct source {
    void (*handle)(struct source *source, uint32_t events);
    int fd;
};
struct server;
struct job;

struct stream {
    struct source source; /* read end of the job's pipe; fd -1: closed */
    struct job *job;
    int spool;
    uint64_t end;      /* offset of the spool's end */
    uint64_t punched;  /* below this the spool is a hole */
    uint64_t trimmed;  /* below this a reader has everything */
    uint64_t lost;     /* refused by the spool's file system */
    uint64_t lost_told;
    uint64_t owed;     /* bytes that were in the pipe when the job ended: the record waits for them */
    uint32_t block;    /* st_blksize */
    bool waiting;      /* `block`: full, out of epoll until a trim */
};
struct job {
    struct source exec; /* error pipe of exec, until it has spoken */
    struct job *next;
    struct server *server;
    char id[JOB_NAME];
    pid_t pid;
    enum io io;
    enum over over;
    uint64_t limit; /* bytes; 0: none */
    struct stream streams[2];
    int record, master;
    struct client *spawner; /* waits for exec */
    bool execed, reaped, recorded, overran;
    enum ending ending;
    int code;
    char clamped[256]; /* "clamped\0NAME\0VALUE\0"... for the reply */
    size_t clamped_size;
};
struct client {
    struct source source;
    struct server *server;
    struct client *next;
    struct job *waits_for; /* `wait` */
    bool in_use, stopping, spawning;
};
struct server {
    struct inside *inside;
    int epoll;
    struct source listener, signals, timer;
    struct job *jobs;
    int job_count, client_count;
    struct client *clients;
    bool stopping, killing, listener_off;
    uint64_t kill_at_ms;
    char *packet;
};

/* spawn.c */
struct spawn_request {
    const char *id, *cwd;
    const char **arguments, **environment, **groups, **rlimits;
    int argument_count, environment_count, group_count, rlimit_count;
    uint64_t uid, gid, limit, rows, columns;
    mode_t mask;
    enum io io;
    enum over over;
    int stdin_fd, stdout_fd, stderr_fd, record_fd;
};
int spawn(struct server *server, struct spawn_request *request, struct job **ret_job);
const char *spawn_refusal(const struct spawn_request *request); /* what is wrong with its descriptors; NULL: nothing */

/* jobs.c */
struct job *job_find(struct server *server, const char *id);
void job_add(struct job *job);
void job_free(struct job *job);
void job_progress(struct job *job);   /* writes records and answers when something is due; may free the job */
void job_settle(struct job *job);     /* after its end: what was in the pipes, then job_progress */
void jobs_reap(struct server *server);
void job_kill(struct job *job, int signal);

/* output.c */
void stream_readable(struct source *source, uint32_t events);
void stream_drain(struct stream *stream);
void stream_close(struct stream *stream);
void stream_trim(struct stream *stream, uint64_t offset);

/* requests.c */
void client_ready(struct source *source, uint32_t events);
void reply(struct client *client, const char *words, size_t size, int fd);
void reply_error(struct client *client, int error, const char *text);
void reply_ending(struct client *client, const struct job *job);
void client_drop(struct client *client);
void client_resume(struct client *client);
void stop_finish(struct server *server);

/* loop.c */
void accept_again(struct server *server);
int watch(struct server *server, struct source *source, uint32_t events);
void rewatch(struct server *server, struct source *source, uint32_t events);
void unwatch(struct server *server, struct source *source);
void stop_begin(struct server *server, uint64_t grace_ms);
