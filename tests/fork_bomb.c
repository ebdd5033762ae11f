/* Forks until it is killed. A failing fork is no reason to end: a shell's bomb goes out by itself, since a shell ends when it cannot
 * fork, and at the limit all of its processes do so at about the same time. */
#include <signal.h>
#include <unistd.h>

int main(void) {
    signal(SIGTERM, SIG_IGN);
    for (;;)
        fork();
}
