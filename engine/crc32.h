/* engine/crc32.h: the checksum of checkpoints and sessions: CRC-32 as zlib and PNG have it. */
#ifndef CRC32_H
#define CRC32_H

#include <stddef.h>
#include <stdint.h>

/* The checksum of some bytes, or of more bytes behind those that gave `crc`; it begins with 0. */
uint32_t crc32(uint32_t crc, const void *data, size_t bytes);

#endif
