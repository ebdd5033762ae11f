/* pid 1 after its set-up. */
#pragma once
struct inside;

/* From here on nothing may call die(): a function that fails returns -errno, and the loop goes on. */
_Noreturn void serve(const struct inside *inside);
