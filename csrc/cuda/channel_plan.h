// Host side of the channel mixing kernel: which tile a block takes, and the exchange of roles that
// makes a gradient of a convolution.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

#include "cuda/channel_factors.h"

namespace sketchlayers::cuda {

// The same axis seen from the input, for stride 1: a convolution of the output's gradient.
inline ConvAxis adjoint_axis(const ConvAxis& axis) {
  return {axis.output,  axis.input,
          axis.kernel,
          /*stride=*/1, axis.dilation * (axis.kernel - 1) - axis.padding,
          axis.dilation};
}

// The factor, of elements of so many bytes, with both axes of the kernel reversed.
inline FactorView flipped(FactorView view, int kernel_h, int kernel_w, int64_t bytes) {
  view.data = static_cast<const char*>(view.data) +
              bytes * ((kernel_h - 1) * view.row + (kernel_w - 1) * view.column);
  view.row = -view.row;
  view.column = -view.column;
  return view;
}

// Searches the tile with the least work, waves of blocks taken into account. Candidates split the
// image into equal parts; parts that are whole images may be several.
template <typename Traits>
class TileSearch {
 public:
  TileSearch(const ConvAxis& vertical, const ConvAxis& horizontal, int64_t batch, int64_t groups,
             int64_t multiprocessors, int64_t most_halo)
      : vertical_(vertical),
        horizontal_(horizontal),
        batch_(batch),
        groups_(groups),
        multiprocessors_(multiprocessors),
        most_halo_(std::min<int64_t>(most_halo, Traits::kHalo)) {}

  // None where not even the halo of a single pixel fits.
  std::optional<PixelTile> best() {
    int64_t before = 0;
    for (int64_t parts = 1;; parts = next(parts)) {
      const int64_t width = ceil_divide(horizontal_.output, parts);
      if (width != before) try_heights(width);
      if (width == 1) return best_;
      before = width;
    }
  }

 private:
  static int64_t next(int64_t parts) { return parts < 4 ? parts + 1 : 2 * parts; }

  void try_heights(int64_t width) {
    if (width > Traits::kPixels) return;
    int64_t before = 0;
    for (int64_t parts = 1;; parts = next(parts)) {
      const int64_t height = ceil_divide(vertical_.output, parts);
      if (height != before) try_tile(height, width);
      if (height == 1) return;
      before = height;
    }
  }

  void try_tile(int64_t height, int64_t width) {
    if (height > Traits::kPixels || width > Traits::kPixels) return;
    // Extents are checked one by one, so that their product cannot overflow.
    const int64_t halo_height = halo_extent(vertical_, height);
    const int64_t halo_width = halo_extent(horizontal_, width);
    if (halo_height > Traits::kHalo || halo_width > Traits::kHalo) return;
    const bool whole = height == vertical_.output && width == horizontal_.output;
    const int64_t most = whole ? std::min(batch_, Traits::kPixels / (height * width)) : 1;
    for (int64_t images = most; images >= 1; images /= 2) {
      if (!fits(images * height * width, images * halo_height * halo_width)) continue;
      const double cost = this->cost(images, height, width, images * halo_height * halo_width);
      if (cost < best_cost_) {
        best_cost_ = cost;
        best_ =
            PixelTile{static_cast<int>(images), static_cast<int>(height), static_cast<int>(width)};
      }
    }
  }

  bool fits(int64_t pixels, int64_t halo) const {
    return pixels <= Traits::kPixels && halo <= most_halo_;
  }

  // Products of tiles that one warp has to wait for, times the rounds that the blocks take.
  double cost(int64_t images, int64_t height, int64_t width, int64_t halo) const {
    const int64_t warp_tiles =
        ceil_divide(ceil_divide(images * height * width, 16), Traits::kWarps);
    const int64_t halo_tiles = ceil_divide(ceil_divide(halo, 16), Traits::kWarps);
    const double taps = static_cast<double>(vertical_.kernel * horizontal_.kernel);
    constexpr double kStart = 4;  // of a block, in the same unit
    const double block = 2 * taps * static_cast<double>(warp_tiles) +
                         static_cast<double>(warp_tiles) + 2 * static_cast<double>(halo_tiles) +
                         kStart;
    const int64_t blocks = groups_ * ceil_divide(batch_, images) *
                           ceil_divide(vertical_.output, height) *
                           ceil_divide(horizontal_.output, width);
    // Few blocks leave multiprocessors idle; many spread evenly.
    const double rounds =
        std::max(1.0, static_cast<double>(blocks) / static_cast<double>(multiprocessors_));
    return rounds * block;
  }

  ConvAxis vertical_, horizontal_;
  int64_t batch_, groups_, multiprocessors_, most_halo_;
  std::optional<PixelTile> best_;
  double best_cost_ = std::numeric_limits<double>::infinity();
};

}  // namespace sketchlayers::cuda
