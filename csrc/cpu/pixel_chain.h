// The chain of chain_conv.h for images whose channels lie together: pixels are the rows of products
// with transposed weights, so that neither images nor features are ever transposed.
#pragma once

#include "cpu/chain_conv.h"

namespace sketchlayers::cpu {

// Whether that pays: weights are transposed for each call.
bool takes_pixels(const ChainConv& conv, const ConvAxis& rows, const ConvAxis& columns);

template <typename T>
void run_pixels(const ChainConv& conv, const ConvAxis& rows, const ConvAxis& columns,
                const ImageView<const T>& input, const ImageView<T>& output);

}  // namespace sketchlayers::cpu
