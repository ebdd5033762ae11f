/* Clients and their requests. */
#pragma once
#include "spawn.h"

enum { MAX_CLIENTS = 512, PACKET = 1 << 20, MAX_FDS = 8 };

struct service;
struct client {
    struct source source;
    struct service *service;
    struct client *next;
    struct job *waits_for; /* `wait`, or `spawn` until exec has spoken */
    bool spawning;         /* it waits for its spawn */
    bool stopping;         /* it waits for the end of a stop */
};
/* What requests work on. */
struct service {
    struct loop loop;
    struct jobs jobs;
    const struct inside *inside;
    struct client *clients;
    int client_count;
    char *packet;
};

void client_ready(struct source *source, uint32_t events);
void reply(struct client *client, const char *words, size_t size, int fd);
/* Replies to each client whose wait is over. */
void answer_waiting(struct service *service);
