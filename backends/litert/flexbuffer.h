// Numbers out of a FlexBuffer map, as attributes of composites and options of custom ops are kept.
//
// The bytes come out of a model file: every read is checked against their end.
#ifndef EDGEPRUNE_FLEXBUFFER_H
#define EDGEPRUNE_FLEXBUFFER_H

#include <stddef.h>
#include <stdint.h>

struct FlexMap {
  const uint8_t* bytes;
  size_t size;
  // Of the values, then of the offsets to their keys: where they start, and bytes of each.
  size_t values, value_width, keys, key_width;
  size_t count;
};

// False when the bytes are no map.
bool flex_map(const void* bytes, size_t size, FlexMap* map);

// The key of entry ``index``, ending in 0; null when it is malformed.
const char* flex_key(const FlexMap& map, size_t index);

// False when entry ``index`` is no number.
bool flex_number(const FlexMap& map, size_t index, double* number);

#endif
