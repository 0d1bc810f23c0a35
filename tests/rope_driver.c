/* tests/rope_driver.c: rope_angles() of engine/rope.h, alone.
 *
 *     rope_driver POSITION ... < inverse frequencies > rotations
 *
 * In: float32 in the machine's byte order. Out: for each position all cosines, then all sines, the same
 * way. */
#include <stdio.h>
#include <stdlib.h>

#include "engine/rope.h"

enum { MOST_PAIRS = 4096 };

int main(int argc, char **argv) {
    static float inv_freq[MOST_PAIRS], cosine[MOST_PAIRS], sine[MOST_PAIRS];
    size_t pairs = fread(inv_freq, sizeof *inv_freq, MOST_PAIRS, stdin);
    for (int i = 1; i < argc; i++) {
        rope_angles(cosine, sine, inv_freq, pairs, (uint32_t)strtoul(argv[i], NULL, 10));
        if (fwrite(cosine, sizeof *cosine, pairs, stdout) != pairs ||
            fwrite(sine, sizeof *sine, pairs, stdout) != pairs)
            return 1;
    }
    return fflush(stdout) ? 1 : 0;
}
