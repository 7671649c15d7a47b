// The two stages of a tile of a two-sided convolution: from the input to the features of all
// branches, and from these to the outputs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/conv_plan.h"

namespace sketchlayers::cpu {

template <typename T>
class FeatureStage {
 public:
  FeatureStage(const ConvPlan& plan, const ImageView<const T>& input)
      : plan_(plan), input_(input) {}

  // Rows [first, last) of the features of all branches, one branch after the other.
  void make(const Tile& tile, int64_t first, int64_t last, float* out, float* work) const {
    const std::vector<uint16_t> masks = plan_.tile_masks(tile);
    float* buffer = work + plan_.signs;
    for (int64_t c = 0; c < plan_.conv.inputs; c += plan_.channel_chunk) {
      const Chunk chunk =
          read(tile, c, std::min(plan_.channel_chunk, plan_.conv.inputs - c), buffer);
      int64_t begin = 0;  // of the branch
      float* target = out;
      for (const Branch& branch : plan_.conv.branches) {
        const int64_t row = std::max(first - begin, int64_t{0});
        const int64_t rows = std::min(last - begin, branch.features) - row;
        if (rows > 0) {
          add_features(branch, tile, row, rows, chunk, masks,
                       target + row * plan_.feature_row(branch), work);
        }
        begin += branch.features;
        target += branch.features * plan_.feature_row(branch);
      }
    }
  }

 private:
  // Some channels of the input, in the layout of the sources.
  struct Chunk {
    int64_t first;
    int64_t channels;
    const float* data;
    int64_t channel;
  };

  Chunk read(const Tile& tile, int64_t c, int64_t channels, float* buffer) const {
    const ImageView<const T> image = input_.at(tile.image, tile.group * plan_.conv.inputs + c);
    if constexpr (std::is_same_v<T, float>) {
      if (plan_.in_place) {
        return {c, channels, image.data + plan_.layout.first_source_row(tile.first_row) * image.row,
                image.channel};
      }
    }
    plan_.layout.pack(image, channels, tile.first_row, buffer,
                      buffer + plan_.channel_chunk * plan_.layout.channel());
    return {c, channels, buffer, plan_.layout.channel()};
  }

  // Adds what the chunk's channels contribute to some rows of a branch's features.
  void add_features(const Branch& branch, const Tile& tile, int64_t row, int64_t rows,
                    const Chunk& chunk, const std::vector<uint16_t>& masks, float* out,
                    float* signs) const {
    const int64_t block_rows = branch.features / branch.in_blocks;
    const int64_t block_channels = plan_.conv.inputs / branch.in_blocks;
    for (int64_t block = chunk.first / block_channels; block < branch.in_blocks; ++block) {
      const int64_t first_row = std::max(row, block * block_rows);
      const int64_t last_row = std::min(row + rows, (block + 1) * block_rows);
      const int64_t first = std::max(chunk.first, block * block_channels);
      const int64_t last = std::min(chunk.first + chunk.channels, (block + 1) * block_channels);
      if (first >= last) break;
      if (first_row >= last_row) continue;
      const Chunk part{first, last - first, chunk.data + (first - chunk.first) * chunk.channel,
                       chunk.channel};
      add_block_features(branch, tile, first_row - block * block_rows, last_row - first_row, part,
                         first > block * block_channels, masks,
                         out + (first_row - row) * plan_.feature_row(branch), signs);
    }
  }

  // The same for channels of one block; rows count from its first, `add` says whether channels of
  // it have been there before.
  void add_block_features(const Branch& branch, const Tile& tile, int64_t row, int64_t rows,
                          const Chunk& chunk, bool add, const std::vector<uint16_t>& masks,
                          float* out, float* signs) const {
    const Factor& factor = branch.in;
    const int64_t width = plan_.positions(factor);
    Product product{factor.data,   factor.feature, factor.channel, kNoOffset, chunk.data,
                    chunk.channel, kNoOffset,      chunk.channels, 1};
    if (factor.signs.packed) {
      product.w = signs;
      product.w_row = plan_.channel_chunk * width;
      product.w_outer = width;
      for (int64_t j = 0; j < rows; ++j) {
        vector_kernels().expand_signs(factor.signs.row(tile.group, row + j), chunk.first * width,
                                      chunk.channels * width, factor.signs.magnitude,
                                      signs + j * product.w_row);
      }
    } else {
      product.w += tile.group * factor.group + row * factor.feature + chunk.first * factor.channel;
    }
    if (factor.taps || plan_.pointwise) {
      plan_.set_taps(factor, masks, product);
      vector_kernels().product(&product, 1, rows, plan_.tile_columns(tile), nullptr, out,
                               plan_.feature_row(branch), add);
    } else {
      add_whole_source(tile, rows, product, out, add);
    }
  }

  // Before the taps every position of the source is needed: the packed zeros too, but of images
  // only the rows that exist.
  void add_whole_source(const Tile& tile, int64_t rows, Product product, float* out,
                        bool add) const {
    if (!plan_.in_place) {
      vector_kernels().product(&product, 1, rows, plan_.layout.channel(), nullptr, out,
                               plan_.layout.channel(), add);
      return;
    }
    const int64_t origin = plan_.layout.first_source_row(tile.first_row);
    const int64_t first = std::max<int64_t>(0, origin);
    const int64_t last = std::min(plan_.sampling.sources[0].rows,
                                  plan_.layout.last_source_row(tile.first_row + tile.rows));
    const int64_t count = (last - first) * plan_.layout.pitch();
    const int64_t offset = (first - origin) * plan_.layout.pitch();
    std::vector<uint16_t> masks(static_cast<size_t>(whole_steps(count) / kColumnStep), 0xffff);
    if (count % kColumnStep != 0) {
      masks.back() = static_cast<uint16_t>((1u << (count % kColumnStep)) - 1);
      product.mask = masks.data();
    }
    product.b += offset;
    vector_kernels().product(&product, 1, rows, whole_steps(count), nullptr, out + offset,
                             plan_.layout.channel(), add);
  }

  const ConvPlan& plan_;
  const ImageView<const T> input_;
};

// Writes the sum of some products, `rows` channels of a tile, to where it belongs in an image.
// `buffer` has room for them in the target's layout.
template <typename T>
void store_products(const Product* parts, int count, int64_t rows, int64_t columns,
                    const float* bias, const TileLayout& layout, const Sampling& sampling,
                    const Tile& tile, const ImageView<T>& image, float* buffer) {
  const int64_t width = layout.pitch();
  if constexpr (std::is_same_v<T, float>) {
    const bool contiguous = (image.column == 1 || width == 1) && image.row == width;
    if (contiguous && width == sampling.target.columns) {
      const int64_t own = tile.rows * width;
      const int64_t whole = own / kColumnStep * kColumnStep;
      float* target = image.data + tile.first_row * image.row;
      vector_kernels().product(parts, count, rows, whole, bias, target, image.channel, false);
      if (whole == own) return;
      // What follows the last columns is another tile's or channel's.
      std::vector<Product> rest(parts, parts + count);
      for (Product& part : rest) {
        part.b += whole;
        if (part.mask) part.mask += whole / kColumnStep;
      }
      vector_kernels().product(rest.data(), count, rows, kColumnStep, bias, buffer, kColumnStep,
                               false);
      vector_kernels().copy_rows(buffer, kColumnStep, rows, own - whole, target + whole,
                                 image.channel, 0, 0);
      return;
    }
  }
  vector_kernels().product(parts, count, rows, columns, bias, buffer, layout.columns(), false);
  store_window(buffer, layout.columns(), width, rows, image, tile.first_row, tile.rows,
               sampling.target.columns);
}

template <typename T>
class OutputStage {
 public:
  // `output` is the target's grid.
  OutputStage(const ConvPlan& plan, const ImageView<T>& output) : plan_(plan), output_(output) {}

  // y for outputs [first, last), first a multiple of kColumnStep.
  void make(const Tile& tile, int64_t first, int64_t last, const float* features,
            float* work) const {
    const int64_t columns = plan_.tile_columns(tile);
    const std::vector<uint16_t> masks =
        plan_.pointwise ? std::vector<uint16_t>() : plan_.tile_masks(tile);
    float* numbers = work + plan_.signs;
    float* target = numbers + plan_.output_chunk * plan_.numbers;
    for (int64_t o = first; o < last; o += plan_.output_chunk) {
      const int64_t chunk_end = std::min(o + plan_.output_chunk, last);
      expand_output_signs(tile.group, o, chunk_end - o, work);
      // Outputs of one block at a time: blocks have features of their own.
      for (int64_t p = o; p < chunk_end;) {
        const int64_t rows = std::min(chunk_end, (p / plan_.out_block + 1) * plan_.out_block) - p;
        Product parts[2];
        const int count =
            output_parts(tile.group, p, rows, features, masks, work, p - o, numbers, parts);
        const int64_t channel = tile.group * plan_.conv.outputs + p;
        const float* bias = plan_.conv.bias ? plan_.conv.bias + channel : nullptr;
        const ImageView<T> image = output_.at(tile.image, channel);
        store_products(parts, count, rows, columns, bias, plan_.layout, plan_.sampling, tile, image,
                       target);
        p += rows;
      }
    }
  }

 private:
  // Signs of outputs [o, o + rows), o a multiple of kColumnStep; one branch at most has them.
  void expand_output_signs(int64_t group, int64_t o, int64_t rows, float* out) const {
    for (const Branch& branch : plan_.conv.branches) {
      const Signs& signs = branch.out.signs;
      if (!signs.packed) continue;
      const int64_t width = plan_.positions(branch.out);
      for (int64_t j = 0; j < branch.features; ++j) {
        vector_kernels().expand_signs(signs.row(group, j), o * width, rows * width, signs.magnitude,
                                      out + j * plan_.output_chunk * width);
      }
    }
  }

  // One part for each branch; at most one has signs, of which those of output o come `first_sign`
  // outputs after the first, and one numbers.
  int output_parts(int64_t group, int64_t o, int64_t rows, const float* features,
                   const std::vector<uint16_t>& masks, const float* signs, int64_t first_sign,
                   float* numbers, Product* parts) const {
    int count = 0;
    for (const Branch& branch : plan_.conv.branches) {
      const Factor& factor = branch.out;
      const int64_t width = plan_.positions(factor);
      const int64_t block_features = branch.features / branch.out_blocks;
      const int64_t block = o * branch.out_blocks / plan_.conv.outputs;
      const int64_t row = plan_.feature_row(branch);
      Product& product = parts[count++];
      product = {
          nullptr,   width,          0, kNoOffset, features + block * block_features * row, row,
          kNoOffset, block_features, 1};
      if (factor.signs.packed) {
        product.w = signs + first_sign * width;
        product.w_outer = plan_.output_chunk * width;
      } else {
        set_numbers(factor, factor.data + group * factor.group + o * factor.channel, block_features,
                    rows, numbers, product);
      }
      if (factor.taps) plan_.set_taps(factor, masks, product);
      features += branch.features * row;
    }
    return count;
  }

  // Rows that lie closer than features are copied together: strides of a power of two would else
  // share a few lines of the cache.
  void set_numbers(const Factor& factor, const float* data, int64_t features, int64_t rows,
                   float* copy, Product& product) const {
    if (factor.channel >= factor.feature) {
      product.w = data;
      product.w_row = factor.channel;
      product.w_outer = factor.feature;
      return;
    }
    const int64_t length = rows * plan_.positions(factor);
    for (int64_t j = 0; j < features; ++j) {
      std::copy_n(data + j * factor.feature, length, copy + j * length);
    }
    product.w = copy;
    product.w_outer = length;
  }

  const ConvPlan& plan_;
  const ImageView<T> output_;
};

}  // namespace sketchlayers::cpu
