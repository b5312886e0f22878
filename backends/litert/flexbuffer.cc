#include "flexbuffer.h"

namespace {

enum Type { kInt = 1, kUInt, kFloat, kIndirectInt = 6, kIndirectUInt, kIndirectFloat, kMap };
constexpr int kBool = 26;

bool inside(const FlexMap& map, size_t at, size_t width) {
  return at <= map.size && width <= map.size - at;
}

bool is_width(uint64_t width) { return width == 1 || width == 2 || width == 4 || width == 8; }

// Little-endian, of 1, 2, 4 or 8 bytes.
bool read_unsigned(const FlexMap& map, size_t at, size_t width, uint64_t* value) {
  if (!is_width(width) || !inside(map, at, width)) return false;
  *value = 0;
  for (size_t i = 0; i < width; ++i) *value |= static_cast<uint64_t>(map.bytes[at + i]) << 8 * i;
  return true;
}

// Follows the offset that stands at ``at``: they all lead backwards.
bool follow(const FlexMap& map, size_t at, size_t width, size_t* to) {
  uint64_t offset;
  if (!read_unsigned(map, at, width, &offset) || offset > at) return false;
  *to = at - offset;
  return true;
}

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace

bool flex_map(const void* bytes, size_t size, FlexMap* map) {
  *map = FlexMap{static_cast<const uint8_t*>(bytes), size, 0, 0, 0, 0, 0};
  if (!bytes || size < 3) return false;
  // The end says what the root is: its offset, its type with the width of its parts, its own width.
  const size_t root_width = map->bytes[size - 1], packed = map->bytes[size - 2];
  if (packed >> 2 != kMap || !is_width(root_width) || size < 2 + root_width) return false;
  map->value_width = size_t{1} << (packed & 3);
  if (!follow(*map, size - 2 - root_width, root_width, &map->values)) return false;
  // Before the values: the offset to the keys, the width of those, and how many there are.
  uint64_t count, key_width;
  const size_t width = map->value_width;
  if (map->values < 3 * width || !follow(*map, map->values - 3 * width, width, &map->keys) ||
      !read_unsigned(*map, map->values - 2 * width, width, &key_width) || !is_width(key_width) ||
      !read_unsigned(*map, map->values - width, width, &count))
    return false;
  map->key_width = key_width;
  map->count = count;
  // A byte with its type follows for each value.
  return count <= size && inside(*map, map->values, count * (width + 1)) &&
         inside(*map, map->keys, count * key_width);
}

const char* flex_key(const FlexMap& map, size_t index) {
  size_t start;
  if (!follow(map, map.keys + index * map.key_width, map.key_width, &start)) return nullptr;
  for (size_t at = start; at < map.size; ++at)
    if (!map.bytes[at]) return reinterpret_cast<const char*>(map.bytes + start);
  return nullptr;
}

bool flex_number(const FlexMap& map, size_t index, double* number) {
  size_t at = map.values + index * map.value_width, width = map.value_width;
  const int packed = map.bytes[map.values + map.count * map.value_width + index];
  int type = packed >> 2;
  if (type >= kIndirectInt && type <= kIndirectFloat) {
    if (!follow(map, at, width, &at)) return false;
    width = size_t{1} << (packed & 3);
    type -= kIndirectInt - kInt;
  }
  uint64_t bits;
  if (!read_unsigned(map, at, width, &bits)) return false;
  if (type == kInt) {
    const int unused = 64 - 8 * static_cast<int>(width);
    *number = static_cast<double>(static_cast<int64_t>(bits << unused) >> unused);
  } else if (type == kUInt || type == kBool) {
    *number = static_cast<double>(bits);
  } else if (type == kFloat && width == 4) {
    *number = same_bits<float>(static_cast<uint32_t>(bits));
  } else if (type == kFloat && width == 8) {
    *number = same_bits<double>(bits);
  } else {
    return false;
  }
  return true;
}
