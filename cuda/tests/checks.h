// What the standalone tests count and print.
#pragma once

#include <cstdio>
#include <string>

inline int failures = 0;
inline int checks = 0;

inline void expect(bool good, const std::string& what) {
  ++checks;
  if (good) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

void products();      // test_products.cpp
void gpu_products();  // test_gpu_products.cpp
void decode_steps();  // test_decode.cpp
