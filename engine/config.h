/* engine/config.h: which configurations a model can have. */
#ifndef CONFIG_H
#define CONFIG_H

#include "model.h"

/* The name of a field that has a value with which no model of this program can be; NULL: there is none. Every
 * number that sizes are made of is far below what could overflow one. */
const char *config_error(const Config *cfg);

#endif
