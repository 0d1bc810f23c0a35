/* engine/rope.c: rotary positions (Su et al. 2021). The checkpoint holds the frequencies, with what YaRN
 * makes of them (exporter/config.py). Here are the angles of a position, and the rotation of a vector by
 * them. sin and cos are computed here: the last bit of libm's differs between systems, and the text must
 * not. */
#include "engine/rope.h"

#include <math.h>

/* Polynomials in double of sin and cos on [-pi/4, pi/4] (minimax, as in fdlibm: relative error below
 * 2^-58). */
static double sin_poly(double x) {
    double z = x * x;
    double p = 1.58969099521155010221e-10;
    p = p * z - 2.50507602534068634195e-08;
    p = p * z + 2.75573137070700676789e-06;
    p = p * z - 1.98412698298579493134e-04;
    p = p * z + 8.33333333332248946124e-03;
    p = p * z - 1.66666666666666324348e-01;
    return x + x * z * p;
}
static double cos_poly(double x) {
    double z = x * x;
    double p = -1.13596475577881948265e-11;
    p = p * z + 2.08757232129817482790e-09;
    p = p * z - 2.75573143513906633035e-07;
    p = p * z + 2.48015872894767294178e-05;
    p = p * z - 1.38888888888741095749e-03;
    p = p * z + 4.16666666666666019037e-02;
    return 1.0 - 0.5 * z + z * z * p;
}

void rope_angles(float *cosine, float *sine, const float *inv_freq, size_t pairs, uint32_t position) {
    for (size_t i = 0; i < pairs; i++) {
        double angle = (double)((float)position * inv_freq[i]);
        /* angle = quarter * pi/2 + rest. pi/2 is taken in two pieces, the first with 33 bits: its product
         * with a quarter below 2^20 is exact. */
        double quarter = rint(angle * 0.63661977236758134308);
        double rest = (angle - quarter * 1.57079632673412561417) - quarter * 6.07710050650619224932e-11;
        double s = sin_poly(rest), c = cos_poly(rest);
        int64_t turn = (int64_t)quarter & 3; /* each quarter turn: (cos, sin) becomes (-sin, cos) */
        double turned_s = turn & 1 ? c : s, turned_c = turn & 1 ? -s : c;
        sine[i] = (float)(turn & 2 ? -turned_s : turned_s);
        cosine[i] = (float)(turn & 2 ? -turned_c : turned_c);
    }
}

void rope(float *x, const float *cosine, const float *sine, size_t pairs) {
    for (size_t i = 0; i < pairs; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosine[i] - b * sine[i];
        x[2 * i + 1] = a * sine[i] + b * cosine[i];
    }
}

void rope_back(float *x, const float *cosine, const float *sine, size_t pairs) {
    for (size_t i = 0; i < pairs; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosine[i] + b * sine[i];
        x[2 * i + 1] = b * cosine[i] - a * sine[i];
    }
}
