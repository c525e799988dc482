// A device that is not the CPU, made of host memory: torch's `PrivateUse1`. Every operation is carried out by the CPU,
// but, as on a GPU, an operation refuses tensors of both, and nothing reads a tensor in place from the host. Fresh
// memory is full of NaN.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>

namespace {

using at::Tensor;
using Sizes = c10::SymIntArrayRef;

constexpr auto kOther = c10::DeviceType::PrivateUse1;
const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

struct HostMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    if (data) std::memset(data, 0xff, bytes);
    return {data, data, &std::free, c10::Device(kOther, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

HostMemory memory;
REGISTER_ALLOCATOR(kOther, &memory)

c10::IntArrayRef known(Sizes sizes) { return C10_AS_INTARRAYREF_SLOW(sizes); }

// The same memory as a tensor of the CPU.
Tensor on_cpu(const Tensor& tensor) {
  if (tensor.device().type() != kOther) return tensor;
  auto keep_alive = [tensor](void*) {};
  auto options = tensor.options().device(at::kCPU);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), keep_alive, options, at::kCPU);
}

Tensor empty(Sizes sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(known(sizes), &memory, kKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(Sizes sizes, Sizes strides, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(known(sizes), known(strides), &memory, kKeys, c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const Tensor& tensor) { return at::native::_local_scalar_dense_cpu(on_cpu(tensor)); }

Tensor as_strided(const Tensor& tensor, Sizes sizes, Sizes strides, std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->expect_int();
  return at::native::as_strided_tensorimpl(tensor, known(sizes), known(strides), start);
}

Tensor view(const Tensor& tensor, Sizes sizes) { return at::native::view(tensor, known(sizes)); }

Tensor reshape_alias(const Tensor& tensor, Sizes sizes, Sizes strides) {
  return at::native::_reshape_alias(tensor, known(sizes), known(strides));
}

const Tensor& resize(const Tensor& tensor, Sizes sizes, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(tensor, known(sizes), format);
}

Tensor& set_storage(Tensor& tensor, c10::Storage storage, c10::SymInt offset, Sizes sizes, Sizes strides) {
  return at::cpu::set_(tensor, storage, offset.expect_int(), known(sizes), known(strides));
}

Tensor& set_whole_storage(Tensor& tensor, c10::Storage storage) {
  int64_t entries = storage.nbytes() / tensor.itemsize();
  return at::cpu::set_(tensor, storage, 0, {entries}, {1});
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Sizes stride,
                   Sizes padding, Sizes dilation, bool transposed, Sizes output_padding, c10::SymInt groups) {
  TORCH_CHECK(input.device() == weight.device(), "convolution: input and weight lie on two devices");
  std::optional<Tensor> host_bias;
  if (bias && bias->defined()) host_bias = on_cpu(*bias);
  auto found = at::convolution(on_cpu(input), on_cpu(weight), host_bias, known(stride), known(padding), known(dilation),
                               transposed, known(output_padding), groups.expect_int());
  return found.to(input.device());
}

int64_t attention_kernel(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                         std::optional<double>, bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

// Any other operation: on the CPU, and written back, once it is sure that a GPU would take these arguments.
void any_other(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const bool takes_host_indices = schema.name().find("index") != std::string::npos;
  bool other = false;
  std::string host, generator;
  const size_t count = schema.arguments().size();
  for (size_t place = 0; place < count; ++place) {
    const auto& value = torch::jit::peek(*stack, place, count);
    const auto& name = schema.arguments()[place].name();
    auto look = [&](const Tensor& tensor) {
      if (!tensor.defined()) return;
      if (tensor.device().type() == kOther) other = true;
      else if (tensor.dim() > 0) host = name;
    };
    if (value.isTensor()) look(value.toTensor());
    else if (value.isTensorList()) for (const Tensor& tensor : value.toTensorVector()) look(tensor);
    else if (value.isOptionalTensorList() && !takes_host_indices) {
      for (const std::optional<Tensor> tensor : value.toOptionalTensorList()) if (tensor) look(*tensor);
    }
    else if (value.isGenerator() && value.toGenerator().device().type() != kOther) generator = name;
  }
  TORCH_CHECK(!other || host.empty(), schema.name(), ": `", host, "` lies on the CPU, others on the other device");
  TORCH_CHECK(generator.empty(), schema.name(), ": `", generator, "` is a generator of the CPU");
  at::native::cpu_fallback(op, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("convolution_overrideable", &convolution);
  m.impl("_fused_sdp_choice", &attention_kernel);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&any_other>()); }

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define SINGLE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(SINGLE)
}
