// A convolution's images cut into tiles of output pixels, and the halo of input pixels that a tile
// reads.
#pragma once

#include "cuda/fragments.h"
#include "geometry.h"

namespace sketchlayers::cuda {

// The tile of output pixels of a block: whole images, or a part of one.
struct PixelTile {
  int images;
  int height;
  int width;
};

SKETCHLAYERS_HOST_DEVICE inline int64_t halo_extent(const ConvAxis& axis, int64_t outputs) {
  return (outputs - 1) * axis.stride + (axis.kernel - 1) * axis.dilation + 1;
}

struct TiledImages {
  int64_t batch;
  ConvAxis vertical;
  ConvAxis horizontal;
  PixelTile tile;

  SKETCHLAYERS_HOST_DEVICE int64_t across() const {
    return ceil_divide(horizontal.output, tile.width);
  }
  SKETCHLAYERS_HOST_DEVICE int64_t down() const {
    return ceil_divide(vertical.output, tile.height);
  }
  SKETCHLAYERS_HOST_DEVICE int64_t tiles() const {
    return ceil_divide(batch, tile.images) * down() * across();
  }
  // Pixels of a tile's halo.
  SKETCHLAYERS_HOST_DEVICE int64_t halo() const {
    return tile.images * halo_extent(vertical, tile.height) * halo_extent(horizontal, tile.width);
  }
};

// What a block knows of its tiles: rows of the halo and output pixels are counted through.
class TileGeometry {
 public:
  struct Origin {  // the first pixel of a tile
    int64_t image, top, left;
  };

  SKETCHLAYERS_INLINE explicit TileGeometry(const TiledImages& images)
      : halo_rows((static_cast<int>(images.halo()) + 15) / 16 * 16),
        pixels(images.tile.images * images.tile.height * images.tile.width),
        images_(images),
        halo_height_(static_cast<int>(halo_extent(images.vertical, images.tile.height))),
        halo_width_(static_cast<int>(halo_extent(images.horizontal, images.tile.width))),
        halo_(images.tile.images * halo_height_ * halo_width_) {}

  SKETCHLAYERS_INLINE Origin origin(int64_t tile) const {
    const int64_t row = tile / images_.across();
    return {row / images_.down() * images_.tile.images, row % images_.down() * images_.tile.height,
            tile % images_.across() * images_.tile.width};
  }

  // The row of the halo that an output pixel reads through tap 0; a tap adds its shift.
  SKETCHLAYERS_INLINE int halo_row(int pixel) const {
    const int x = pixel % images_.tile.width;
    const int y = pixel / images_.tile.width % images_.tile.height;
    const int image = pixel / (images_.tile.width * images_.tile.height);
    return (image * halo_height_ + y * static_cast<int>(images_.vertical.stride)) * halo_width_ +
           x * static_cast<int>(images_.horizontal.stride);
  }
  SKETCHLAYERS_INLINE int tap_shift(int y, int x) const {
    return y * static_cast<int>(images_.vertical.dilation) * halo_width_ +
           x * static_cast<int>(images_.horizontal.dilation);
  }

  // offset(image, y, x) of a row of the halo, or of an output pixel; -1 outside of the images.
  template <typename Offset>
  SKETCHLAYERS_INLINE int64_t of_halo(const Origin& tile, int row, const Offset& offset) const {
    const int64_t x =
        tile.left * images_.horizontal.stride - images_.horizontal.padding + row % halo_width_;
    const int64_t y = tile.top * images_.vertical.stride - images_.vertical.padding +
                      row / halo_width_ % halo_height_;
    const int64_t image = tile.image + row / (halo_width_ * halo_height_);
    const bool inside = row < halo_ && image < images_.batch && y >= 0 &&
                        y < images_.vertical.input && x >= 0 && x < images_.horizontal.input;
    return inside ? offset(image, y, x) : -1;
  }
  template <typename Offset>
  SKETCHLAYERS_INLINE int64_t of_pixel(const Origin& tile, int pixel, const Offset& offset) const {
    const int64_t x = tile.left + pixel % images_.tile.width;
    const int64_t y = tile.top + pixel / images_.tile.width % images_.tile.height;
    const int64_t image = tile.image + pixel / (images_.tile.width * images_.tile.height);
    const bool inside = pixel < pixels && image < images_.batch && y < images_.vertical.output &&
                        x < images_.horizontal.output;
    return inside ? offset(image, y, x) : -1;
  }

  const int halo_rows;  // whole sixteens
  const int pixels;

 private:
  const TiledImages& images_;
  int halo_height_, halo_width_, halo_;
};

}  // namespace sketchlayers::cuda
