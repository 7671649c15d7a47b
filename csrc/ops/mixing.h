#pragma once

namespace sketchlayers {

// What the fixed signs U2 mix: channels and kernel positions (Definition 3 of the paper), or
// channels only (the mode-n sketch of Definition 2 along the channel mode).
enum class Mixing { kSpatial, kChannel };

}  // namespace sketchlayers
