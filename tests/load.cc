// Runs a SavedModel as TensorFlow Serving does: by the same loader, in a
// session, and with XLA turned off as it turns it off.
//
//   load FOLDER stock|xla INPUT SIZE...
//
// Feeds 3 + 2 sin(i) for i = 0, 1, ... to INPUT, a float of shape SIZE..., and
// prints each output of serving_default, by name.

#include <cmath>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"

namespace tensorflow {
// What the server calls unless it is told to use XLA. No header has it.
void DisableXlaCompilation();
}  // namespace tensorflow

namespace tf = tensorflow;

void Check(const tf::Status& status) {
  if (status.ok()) return;
  std::cerr << status.ToString() << "\n";
  std::exit(1);
}

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "load FOLDER stock|xla INPUT SIZE...\n";
    return 2;
  }
  if (std::string(argv[2]) == "stock") tf::DisableXlaCompilation();
  tf::SavedModelBundle bundle;
  Check(tf::LoadSavedModel({}, {}, argv[1], {"serve"}, &bundle));
  const auto& signature =
      bundle.meta_graph_def.signature_def().at("serving_default");

  tf::TensorShape shape;
  for (int i = 4; i < argc; ++i) shape.AddDim(std::stoi(argv[i]));
  tf::Tensor input(tf::DT_FLOAT, shape);
  auto values = input.flat<float>();
  for (int i = 0; i < values.size(); ++i) values(i) = 3 + 2 * std::sin(i);

  std::vector<std::string> names, fetches;
  for (const auto& [name, info] : signature.outputs()) {
    names.push_back(name);
    fetches.push_back(info.name());
  }
  std::vector<tf::Tensor> outputs;
  Check(bundle.session->Run({{signature.inputs().at(argv[3]).name(), input}},
                            fetches, {}, &outputs));
  std::cout.precision(std::numeric_limits<float>::max_digits10);
  for (size_t i = 0; i < names.size(); ++i) {
    std::cout << names[i];
    const auto result = outputs[i].flat<float>();
    for (int j = 0; j < result.size(); ++j) std::cout << ' ' << result(j);
    std::cout << "\n";
  }
}
