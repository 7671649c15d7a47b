// The public C++ interface of libsketchlayers.
#pragma once

#include "nn/sk_conv2d.h"
#include "nn/sk_linear.h"
#include "nn/state_dict.h"
#include "ops/hashed_weight.h"
#include "ops/sign_matrix.h"
#include "ops/sk_conv2d.h"
#include "ops/sk_linear.h"
#include "ops/sk_weight.h"
#include "plan/measured_times.h"
#include "plan/plan.h"
