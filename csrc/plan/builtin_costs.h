// The planner's constants where none were measured on the machine itself: for CPUs those of two
// threads of an AMD EPYC with AVX-512 (`sketchlayers bench --tune`), for GPUs the rates of an
// H100-class card with half of them for thin products, which nobody has measured yet.
#pragma once

namespace sketchlayers {

// clang-format off
constexpr const char* kBuiltinCosts = R"(
cpu float32 linear dense forward 7.311e-06 1.201e-11 0 1.908e-10
cpu float32 linear dense training 3.844e-05 3.429e-11 5.851e-10 8.287e-10
cpu float32 linear form forward 1.422e-05 6.722e-12 0 1.697e-10
cpu float32 linear form training 5.583e-05 1.439e-11 0 6.194e-10
cpu float32 linear factored forward 2.224e-05 8.985e-12 1.609e-10 2.429e-10
cpu float32 linear factored training 8.562e-05 2.588e-11 9.38e-10 2.901e-09
cpu float32 pointwise dense forward 4.908e-05 7.481e-12 1.878e-10 0
cpu float32 pointwise dense forward channels_last 5.329e-05 6.618e-12 1.609e-11 1.152e-10
cpu float32 pointwise dense training 0.0002256 1.491e-11 1.537e-09 0
cpu float32 pointwise dense training channels_last 0.0001934 2.032e-11 5.973e-10 1.969e-09
cpu float32 pointwise form forward 1.842e-05 2.337e-11 0 1.133e-12
cpu float32 pointwise form forward channels_last 1.699e-05 2.42e-11 0 8.963e-10
cpu float32 pointwise form training 0.0001124 5.461e-11 0 0
cpu float32 pointwise form training channels_last 0.0001215 0 0 1.962e-09
cpu float32 pointwise factored forward 2.622e-05 6.909e-12 1.027e-10 7.599e-10
cpu float32 pointwise factored forward channels_last 2.749e-05 1.049e-11 7.259e-11 0
cpu float32 pointwise factored training 0.0001025 1.881e-11 9.096e-10 1.159e-08
cpu float32 pointwise factored training channels_last 0.0001191 2.708e-11 8.629e-10 5.416e-11
cpu float32 spatial dense forward 5.131e-05 5.251e-12 5.608e-10 9.306e-10
cpu float32 spatial dense forward channels_last 2.228e-05 5.983e-12 5.218e-11 6.38e-10
cpu float32 spatial dense training 0.0003011 1.453e-11 2.428e-09 2.877e-09
cpu float32 spatial dense training channels_last 0.0001066 1.818e-11 1.367e-09 2.18e-09
cpu float32 spatial form forward 1.642e-05 7.09e-12 0 2.59e-10
cpu float32 spatial form forward channels_last 3.202e-05 1.144e-11 0 9.992e-10
cpu float32 spatial form training 0.0001248 1.519e-11 0 1.161e-09
cpu float32 spatial form training channels_last 0.0001342 1.788e-11 0 2.937e-09
cpu float32 spatial factored forward 2.607e-05 5.846e-12 2.632e-10 1.852e-09
cpu float32 spatial factored forward channels_last 1.614e-05 6.211e-12 3.051e-10 3.432e-09
cpu float32 spatial factored training 0.0001454 1.806e-11 1.389e-09 1.273e-08
cpu float32 spatial factored training channels_last 0.0001004 1.999e-11 1.671e-09 9.427e-09
cpu float32 channel dense forward 3.836e-05 4.703e-12 6.922e-10 5.813e-10
cpu float32 channel dense forward channels_last 4.691e-05 4.808e-12 2.701e-10 4.36e-10
cpu float32 channel dense training 0.0003348 1.435e-11 2.901e-09 1.767e-09
cpu float32 channel dense training channels_last 0.0002382 1.39e-11 1.893e-09 2.492e-09
cpu float32 channel form forward 2.964e-05 3.322e-11 0 6.351e-10
cpu float32 channel form forward channels_last 3.954e-05 5.014e-11 0 6.919e-10
cpu float32 channel form training 0.0001986 8.18e-11 0 8.194e-10
cpu float32 channel form training channels_last 0.0001654 8.911e-11 0 1.52e-09
cpu float32 channel factored forward 3.487e-05 6.485e-12 3.007e-10 7.771e-10
cpu float32 channel factored forward channels_last 3.852e-05 5.904e-12 4.2e-10 2.957e-09
cpu float32 channel factored training 0.0002088 2.205e-11 1.268e-09 2.923e-09
cpu float32 channel factored training channels_last 0.0002237 1.925e-11 1.725e-09 8.452e-09
cpu half linear dense forward 2.74e-05 3.271e-12 2.198e-11 1.141e-10
cpu half linear dense training 0.0001324 9.284e-12 4.349e-10 4.423e-10
cpu half linear form forward 1.51e-05 9.055e-12 0 6.844e-10
cpu half linear form training 5.991e-05 1.951e-11 0 1.283e-09
cpu half linear factored forward 2.404e-05 6.638e-12 2.299e-10 1.011e-09
cpu half linear factored training 0.0001053 2.338e-11 9.336e-10 3.709e-09
cpu half pointwise dense forward 8.243e-05 2.976e-12 1.963e-10 4.058e-10
cpu half pointwise dense forward channels_last 5.517e-05 3.02e-12 1.543e-11 2.765e-10
cpu half pointwise dense training 0.0003276 4.148e-12 1.107e-09 3.898e-09
cpu half pointwise dense training channels_last 0.0002432 7.103e-12 3.361e-10 2.935e-09
cpu half pointwise form forward 1.872e-05 3.921e-11 0 8.37e-10
cpu half pointwise form forward channels_last 2.113e-05 4.222e-11 0 6.927e-10
cpu half pointwise form training 0.0001167 1.565e-10 0 7.106e-10
cpu half pointwise form training channels_last 0.0001129 0 0 2.357e-09
cpu half pointwise factored forward 3.668e-05 6.707e-12 1.473e-10 1.924e-09
cpu half pointwise factored forward channels_last 3.867e-05 8.895e-12 7.622e-11 4.351e-10
cpu half pointwise factored training 0.0001905 2.065e-11 9.127e-10 1.561e-08
cpu half pointwise factored training channels_last 0.000159 3.044e-11 6.804e-10 1.378e-10
cpu half spatial dense forward 7.156e-05 3.168e-12 2.25e-10 5.983e-10
cpu half spatial dense forward channels_last 4.471e-05 3.048e-12 9.099e-11 6.311e-10
cpu half spatial dense training 0.0003778 8.391e-12 1.278e-09 2.025e-09
cpu half spatial dense training channels_last 0.0003317 9.152e-12 6.182e-10 2.269e-09
cpu half spatial form forward 2.02e-05 6.507e-12 0 1.03e-09
cpu half spatial form forward channels_last 2.026e-05 6.458e-12 0 1.951e-09
cpu half spatial form training 0.0001092 1.461e-11 0 2.01e-09
cpu half spatial form training channels_last 0.0001399 1.1e-11 0 4.419e-09
cpu half spatial factored forward 4.561e-05 6.236e-12 1.725e-10 6.73e-10
cpu half spatial factored forward channels_last 2.908e-05 5.591e-12 3.324e-10 5.04e-09
cpu half spatial factored training 0.000184 2.008e-11 9.702e-10 9.484e-09
cpu half spatial factored training channels_last 0.0001934 1.88e-11 1.14e-09 1.116e-08
cpu half channel dense forward 6.895e-05 2.495e-12 3.364e-10 3.593e-10
cpu half channel dense forward channels_last 5.773e-05 2.685e-12 5.996e-11 4.148e-10
cpu half channel dense training 0.0004022 8.739e-12 1.515e-09 1.233e-09
cpu half channel dense training channels_last 0.0003032 9.157e-12 4.368e-10 2.293e-09
cpu half channel form forward 3.554e-05 1.309e-11 0 9.261e-10
cpu half channel form forward channels_last 2.705e-05 1.985e-11 0 1.23e-09
cpu half channel form training 0.000157 5.92e-11 0 1.437e-09
cpu half channel form training channels_last 0.0001529 4.69e-11 0 2.382e-09
cpu half channel factored forward 5.857e-05 5.524e-12 3.517e-10 7.763e-10
cpu half channel factored forward channels_last 6.145e-05 6.157e-12 2.521e-10 1.786e-09
cpu half channel factored training 0.0002536 2.232e-11 1.486e-09 3.654e-09
cpu half channel factored training channels_last 0.0002855 2.166e-11 1.023e-09 6.719e-09
cpu float64 linear dense forward 0 1.991e-11 0 3.762e-10
cpu float64 linear dense training 0 6.139e-11 9.442e-10 1.434e-09
cpu float64 linear form forward 2.175e-05 2.276e-11 0 2e-10
cpu float64 linear form training 4.466e-06 5.022e-11 0 1.509e-09
cpu float64 linear factored forward 1.872e-05 1.605e-11 4.578e-10 2.029e-09
cpu float64 linear factored training 0.000108 4.888e-11 2.366e-09 5.326e-09
cpu float64 pointwise dense forward 0 2.535e-11 2.244e-10 2.048e-09
cpu float64 pointwise dense training 0 7.492e-11 1.473e-09 6.048e-09
cpu float64 pointwise form forward 2.357e-05 5.549e-11 0 6.096e-11
cpu float64 pointwise form training 8.828e-05 1.566e-10 0 7.703e-11
cpu float64 pointwise factored forward 2.933e-05 2.736e-11 2.264e-10 4.551e-09
cpu float64 pointwise factored training 6.043e-05 7.607e-11 1.525e-09 2.625e-08
cpu float64 spatial dense forward 3.631e-05 3.676e-11 3.287e-10 4.757e-11
cpu float64 spatial dense training 0.0001301 1.111e-10 1.627e-09 0
cpu float64 spatial form forward 1.965e-05 2.549e-11 0 8.754e-10
cpu float64 spatial form training 8.612e-05 4.131e-11 0 4.477e-09
cpu float64 spatial factored forward 7.179e-05 3.626e-11 1.687e-10 0
cpu float64 spatial factored training 0.0002721 1.187e-10 2.538e-09 0
cpu float64 channel dense forward 0 3.386e-11 0 2.675e-09
cpu float64 channel dense training 3.318e-05 1.067e-10 2.539e-10 7.489e-09
cpu float64 channel form forward 6.023e-05 1.005e-10 0 1.734e-09
cpu float64 channel form training 0.0002182 0 0 4.834e-09
cpu float64 channel factored forward 3.738e-05 3.73e-11 2.065e-09 1.898e-08
cpu float64 channel factored training 0.0001916 1.162e-10 8.371e-09 7.409e-09

cuda float32 linear dense forward 5e-06 4e-14 2.7e-12 2.7e-12
cuda float32 linear dense training 1.5e-05 1.2e-13 8.1e-12 8.1e-12
cuda float32 linear form forward 1e-05 8e-14 0 5.4e-12
cuda float32 linear form training 3e-05 2.4e-13 0 1.62e-11
cuda float32 linear factored forward 1e-05 8e-14 2.7e-12 2.7e-12
cuda float32 linear factored training 3e-05 2.4e-13 8.1e-12 8.1e-12
cuda float32 pointwise dense forward 5e-06 4e-14 2.7e-12 2.7e-12
cuda float32 pointwise dense training 1.5e-05 1.2e-13 8.1e-12 8.1e-12
cuda float32 pointwise form forward 1e-05 8e-14 0 5.4e-12
cuda float32 pointwise form training 3e-05 2.4e-13 0 1.62e-11
cuda float32 pointwise factored forward 1e-05 8e-14 2.7e-12 2.7e-12
cuda float32 pointwise factored training 3e-05 2.4e-13 8.1e-12 8.1e-12
cuda float32 spatial dense forward 5e-06 4e-14 2.7e-12 2.7e-12
cuda float32 spatial dense training 1.5e-05 1.2e-13 8.1e-12 8.1e-12
cuda float32 spatial form forward 1e-05 8e-14 0 5.4e-12
cuda float32 spatial form training 3e-05 2.4e-13 0 1.62e-11
cuda float32 spatial factored forward 1e-05 8e-14 2.7e-12 2.7e-12
cuda float32 spatial factored training 3e-05 2.4e-13 8.1e-12 8.1e-12
cuda float32 channel dense forward 5e-06 4e-14 2.7e-12 2.7e-12
cuda float32 channel dense training 1.5e-05 1.2e-13 8.1e-12 8.1e-12
cuda float32 channel form forward 1e-05 8e-14 0 5.4e-12
cuda float32 channel form training 3e-05 2.4e-13 0 1.62e-11
cuda float32 channel factored forward 1e-05 8e-14 2.7e-12 2.7e-12
cuda float32 channel factored training 3e-05 2.4e-13 8.1e-12 8.1e-12
cuda half linear dense forward 5e-06 4e-15 1.35e-12 1.35e-12
cuda half linear dense training 1.5e-05 1.2e-14 4.05e-12 4.05e-12
cuda half linear form forward 1e-05 1.2e-14 0 2.7e-12
cuda half linear form training 3e-05 3.6e-14 0 8.1e-12
cuda half linear factored forward 1e-05 1.2e-14 1.35e-12 1.35e-12
cuda half linear factored training 3e-05 3.6e-14 4.05e-12 4.05e-12
cuda half pointwise dense forward 5e-06 4e-15 1.35e-12 1.35e-12
cuda half pointwise dense training 1.5e-05 1.2e-14 4.05e-12 4.05e-12
cuda half pointwise form forward 1e-05 1.2e-14 0 2.7e-12
cuda half pointwise form training 3e-05 3.6e-14 0 8.1e-12
cuda half pointwise factored forward 1e-05 1.2e-14 1.35e-12 1.35e-12
cuda half pointwise factored training 3e-05 3.6e-14 4.05e-12 4.05e-12
cuda half spatial dense forward 5e-06 4e-15 1.35e-12 1.35e-12
cuda half spatial dense training 1.5e-05 1.2e-14 4.05e-12 4.05e-12
cuda half spatial form forward 1e-05 1.2e-14 0 2.7e-12
cuda half spatial form training 3e-05 3.6e-14 0 8.1e-12
cuda half spatial factored forward 1e-05 1.2e-14 1.35e-12 1.35e-12
cuda half spatial factored training 3e-05 3.6e-14 4.05e-12 4.05e-12
cuda half channel dense forward 5e-06 4e-15 1.35e-12 1.35e-12
cuda half channel dense training 1.5e-05 1.2e-14 4.05e-12 4.05e-12
cuda half channel form forward 1e-05 1.2e-14 0 2.7e-12
cuda half channel form training 3e-05 3.6e-14 0 8.1e-12
cuda half channel factored forward 1e-05 1.2e-14 1.35e-12 1.35e-12
cuda half channel factored training 3e-05 3.6e-14 4.05e-12 4.05e-12
cuda float64 linear dense forward 5e-06 8e-14 5.4e-12 5.4e-12
cuda float64 linear dense training 1.5e-05 2.4e-13 1.62e-11 1.62e-11
cuda float64 linear form forward 1e-05 1.6e-13 0 1.08e-11
cuda float64 linear form training 3e-05 4.8e-13 0 3.24e-11
cuda float64 linear factored forward 1e-05 1.6e-13 5.4e-12 5.4e-12
cuda float64 linear factored training 3e-05 4.8e-13 1.62e-11 1.62e-11
cuda float64 pointwise dense forward 5e-06 8e-14 5.4e-12 5.4e-12
cuda float64 pointwise dense training 1.5e-05 2.4e-13 1.62e-11 1.62e-11
cuda float64 pointwise form forward 1e-05 1.6e-13 0 1.08e-11
cuda float64 pointwise form training 3e-05 4.8e-13 0 3.24e-11
cuda float64 pointwise factored forward 1e-05 1.6e-13 5.4e-12 5.4e-12
cuda float64 pointwise factored training 3e-05 4.8e-13 1.62e-11 1.62e-11
cuda float64 spatial dense forward 5e-06 8e-14 5.4e-12 5.4e-12
cuda float64 spatial dense training 1.5e-05 2.4e-13 1.62e-11 1.62e-11
cuda float64 spatial form forward 1e-05 1.6e-13 0 1.08e-11
cuda float64 spatial form training 3e-05 4.8e-13 0 3.24e-11
cuda float64 spatial factored forward 1e-05 1.6e-13 5.4e-12 5.4e-12
cuda float64 spatial factored training 3e-05 4.8e-13 1.62e-11 1.62e-11
cuda float64 channel dense forward 5e-06 8e-14 5.4e-12 5.4e-12
cuda float64 channel dense training 1.5e-05 2.4e-13 1.62e-11 1.62e-11
cuda float64 channel form forward 1e-05 1.6e-13 0 1.08e-11
cuda float64 channel form training 3e-05 4.8e-13 0 3.24e-11
cuda float64 channel factored forward 1e-05 1.6e-13 5.4e-12 5.4e-12
cuda float64 channel factored training 3e-05 4.8e-13 1.62e-11 1.62e-11
)";
// clang-format on

}  // namespace sketchlayers
