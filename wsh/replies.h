/* What a client is answered; a part of the layer of requests. */
#pragma once
#include "requests.h"

void reply_ok(struct client *client);
void reply_error(struct client *client, int error, const char *text);
void reply_started(struct client *client, const struct job *job);
void reply_ending(struct client *client, const struct job *job);
/* "exit N" and the like, with `separator` between the words. The length, as snprintf. */
int describe(const struct job *job, char *text, size_t size, char separator);
