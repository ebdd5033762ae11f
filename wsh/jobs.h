/* The jobs of the container: the list, their ends and records, and the stop that ends all of them. */
#pragma once
#include <sys/types.h>
#include "output.h"

enum { JOB_NAME = 64, MAX_JOBS = 4096 };
enum io { IO_SPOOL, IO_DIRECT, IO_TERMINAL };
enum ending { RUNNING, EXITED, SIGNALED, OVERRAN };

/* What the child of a spawn writes to the error pipe when it cannot exec. */
struct failure {
    int error;
    char what[28];
};
struct jobs;
struct job {
    struct source exec; /* the error pipe, until exec has succeeded or failed */
    struct output output;
    struct job *next;
    struct jobs *jobs;
    char id[JOB_NAME];
    pid_t pid;
    enum io io;
    int record;
    int terminal; /* the job's side of its terminal, for `winsize` */
    int handover; /* the other side, until it has been given to the client */
    bool execed, reaped, recorded, killed;
    bool gone; /* removed from the list; freed after the clients that wait for it have their reply */
    enum ending ending;
    int code;
    struct failure failure; /* error 0: none */
    char clamped[256];      /* "clamped\0NAME\0VALUE\0"... for the reply */
    size_t clamped_size;
};
struct jobs {
    struct loop *loop;
    struct job *first; /* sorted by id */
    struct job *gone;
    int count;
    bool news; /* a job has started, ended or been removed, or the stop is over; a client may wait for that */
    struct source timer;
    bool stopping, killing;
    uint64_t kill_at_ms;
};

int jobs_open(struct jobs *jobs, struct loop *loop); /* 0 or -errno */
struct job *job_new(struct jobs *jobs);              /* not in the list yet; NULL: no memory */
struct job *job_find(struct jobs *jobs, const char *id);
void job_add(struct job *job);
void job_drop(struct job *job);   /* removes it from the list and closes its descriptors */
void job_settle(struct job *job); /* after its end: moves what is in the pipes, then writes its record */
void job_trim(struct job *job, int stream, uint64_t offset);
void jobs_reap(struct jobs *jobs);
void jobs_free_gone(struct jobs *jobs);
/* Ends every process but pid 1: TERM, then KILL after the grace. `stopping` becomes false when none is left. */
void jobs_stop(struct jobs *jobs, uint64_t grace_ms);
