package gpu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"github.com/ebitengine/purego"
)

// simulatedSymbol marks a library that imitates cards.
const simulatedSymbol = "smeltSimulated"

// dlopen opens path and says whether it is a simulation.
func dlopen(path string) (handle uintptr, simulated bool, err error) {
	handle, err = purego.Dlopen(path, purego.RTLD_LAZY|purego.RTLD_LOCAL)
	if err != nil {
		return 0, false, fmt.Errorf("cannot load %w; is the NVIDIA driver in this image?", err) // it begins with the path
	}
	if _, err := purego.Dlsym(handle, simulatedSymbol); err == nil {
		simulated = true
	}
	return handle, simulated, nil
}

// CUresult values that mean something to us.
const (
	cudaOutOfMemory      = 2
	cudaNoDevice         = 100
	cudaECCUncorrectable = 214
	cudaInvalidPTX       = 218
	cudaNoJIT            = 221
)

// A cudaError is what a driver call returned.
type cudaError struct {
	call string
	code int
	name string
}

func (e *cudaError) Error() string {
	s := fmt.Sprintf("%s: error %d", e.call, e.code)
	if e.name != "" {
		s += " (" + e.name + ")"
	}
	switch e.code {
	case cudaNoDevice:
		s += ": no card is usable; is the nvidia module loaded?"
	case cudaNoJIT:
		s += ": libnvidia-ptxjitcompiler.so.1 is missing from the image"
	}
	return s
}

// cuda is the CUDA driver API, the part that every driver since 450 has: no
// cuCtxCreate, whose newest version is missing in older drivers.
type cuda struct {
	fn map[string]uintptr
}

var cudaSymbols = []string{
	"cuInit", "cuDriverGetVersion", "cuDeviceGetByPCIBusId", "cuDeviceGetAttribute",
	"cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuCtxSynchronize",
	"cuModuleLoadDataEx", "cuModuleGetFunction", "cuMemGetInfo_v2", "cuMemAlloc_v2", "cuMemFree_v2",
	"cuMemsetD32_v2", "cuMemcpyDtoH_v2", "cuLaunchKernel", "cuGetErrorName",
}

func openCUDA(handle uintptr, path string) (*cuda, error) {
	c := &cuda{fn: map[string]uintptr{}}
	var missing []string
	for _, name := range cudaSymbols {
		p, err := purego.Dlsym(handle, name)
		if err != nil {
			missing = append(missing, name)
			continue
		}
		c.fn[name] = p
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%s lacks %s: the driver is too old or not NVIDIA's", path, strings.Join(missing, ", "))
	}
	return c, c.call("cuInit", 0)
}

// call calls a driver function. The directive keeps what a uintptr argument
// points to alive and in place until the call is over.
//
//go:uintptrescapes
func (c *cuda) call(name string, args ...uintptr) error {
	r, _, _ := purego.SyscallN(c.fn[name], args...)
	code := int(int32(r))
	if code == 0 {
		return nil
	}
	return &cudaError{call: name, code: code, name: c.errorName(code)}
}

func (c *cuda) errorName(code int) string {
	var p *byte
	if r, _, _ := purego.SyscallN(c.fn["cuGetErrorName"], uintptr(code), uintptr(unsafe.Pointer(&p))); r != 0 || p == nil {
		return ""
	}
	b := unsafe.Slice(p, 64)
	for i, ch := range b {
		if ch == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// Attributes of cuDeviceGetAttribute.
const (
	attrSMs     = 16
	attrCCMajor = 75
	attrCCMinor = 76
)

// card is one device with its primary context current on this thread: the
// caller has locked the goroutine to it.
type cudaCard struct {
	*cuda
	device  int32
	context uintptr
	kernels map[string]uintptr
	sms     int
	cc      string
}

// open makes the card at a PCI address current and compiles the kernels on it.
func (c *cuda) open(address string) (*cudaCard, error) {
	k := &cudaCard{cuda: c, kernels: map[string]uintptr{}}
	name := append([]byte(address), 0)
	if err := c.call("cuDeviceGetByPCIBusId", uintptr(unsafe.Pointer(&k.device)), uintptr(unsafe.Pointer(&name[0]))); err != nil {
		return nil, err
	}
	var sms, major, minor int32
	for attr, at := range map[uintptr]*int32{attrSMs: &sms, attrCCMajor: &major, attrCCMinor: &minor} {
		if err := c.call("cuDeviceGetAttribute", uintptr(unsafe.Pointer(at)), attr, uintptr(k.device)); err != nil {
			return nil, err
		}
	}
	if sms <= 0 {
		return nil, fmt.Errorf("the card says it has %d multiprocessors", sms)
	}
	k.sms, k.cc = int(sms), fmt.Sprintf("%d.%d", major, minor)
	if err := c.call("cuDevicePrimaryCtxRetain", uintptr(unsafe.Pointer(&k.context)), uintptr(k.device)); err != nil {
		return nil, err
	}
	if err := c.call("cuCtxSetCurrent", k.context); err != nil {
		return nil, err
	}
	if err := k.load(); err != nil {
		return nil, err
	}
	return k, nil
}

// CUjit_option numbers.
const (
	jitErrorLog     = 5
	jitErrorLogSize = 6
)

func (k *cudaCard) load() error {
	text := append([]byte(kernelsPTX), 0)
	logText := make([]byte, 4096)
	// Its address travels as a number inside values.
	var pin runtime.Pinner
	pin.Pin(&logText[0])
	defer pin.Unpin()
	options := [2]int32{jitErrorLog, jitErrorLogSize}
	values := [2]uintptr{uintptr(unsafe.Pointer(&logText[0])), uintptr(len(logText))}
	var module uintptr
	err := k.call("cuModuleLoadDataEx", uintptr(unsafe.Pointer(&module)), uintptr(unsafe.Pointer(&text[0])),
		2, uintptr(unsafe.Pointer(&options[0])), uintptr(unsafe.Pointer(&values[0])))
	if err != nil {
		if said := strings.TrimSpace(strings.TrimRight(string(logText), "\x00")); said != "" {
			return fmt.Errorf("%w; the compiler says: %s", err, said)
		}
		return err
	}
	for _, name := range []string{"vram_fill", "vram_check", "fma_chain"} {
		b := append([]byte(name), 0)
		var f uintptr
		if err := k.call("cuModuleGetFunction", uintptr(unsafe.Pointer(&f)), module, uintptr(unsafe.Pointer(&b[0]))); err != nil {
			return err
		}
		k.kernels[name] = f
	}
	return nil
}

func (k *cudaCard) memory() (free, total uint64, err error) {
	err = k.call("cuMemGetInfo_v2", uintptr(unsafe.Pointer(&free)), uintptr(unsafe.Pointer(&total)))
	return free, total, err
}

func (k *cudaCard) alloc(n uint64) (ptr uint64, err error) {
	err = k.call("cuMemAlloc_v2", uintptr(unsafe.Pointer(&ptr)), uintptr(n))
	return ptr, err
}

func (k *cudaCard) free(ptr uint64) error { return k.call("cuMemFree_v2", uintptr(ptr)) }

func (k *cudaCard) zero(ptr, bytes uint64) error {
	return k.call("cuMemsetD32_v2", uintptr(ptr), 0, uintptr(bytes/4))
}

func (k *cudaCard) read(b []byte, ptr uint64) error {
	return k.call("cuMemcpyDtoH_v2", uintptr(unsafe.Pointer(&b[0])), uintptr(ptr), uintptr(len(b)))
}

// launch runs a kernel and waits for it. Each argument is a uint64 or a
// uint32, as the kernel's parameters are.
func (k *cudaCard) launch(name string, blocks, threads int, args ...any) error {
	f, ok := k.kernels[name]
	if !ok {
		return fmt.Errorf("there is no kernel %s", name)
	}
	// cuLaunchKernel takes the address of each argument; eight bytes suffice
	// for both sizes on a little-endian machine.
	values := make([]uint64, len(args))
	params := make([]unsafe.Pointer, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case uint64:
			values[i] = v
		case uint32:
			values[i] = uint64(v)
		default:
			panic(fmt.Sprintf("gpu: kernel argument of type %T", a))
		}
		params[i] = unsafe.Pointer(&values[i])
	}
	err := k.call("cuLaunchKernel", f, uintptr(blocks), 1, 1, uintptr(threads), 1, 1, 0, 0, uintptr(unsafe.Pointer(&params[0])), 0)
	runtime.KeepAlive(values)
	if err != nil {
		return err
	}
	return k.call("cuCtxSynchronize")
}

// vramErrors reads the error buffer of vram_check.
func (k *cudaCard) vramErrors(buffer uint64) (count uint32, errs []vramError, err error) {
	b := make([]byte, vramErrBuffer)
	if err := k.read(b, buffer); err != nil {
		return 0, nil, err
	}
	count = binary.LittleEndian.Uint32(b)
	for i := range min(int(count), vramRecords) {
		r := b[8+24*i:]
		errs = append(errs, vramError{
			addr: binary.LittleEndian.Uint64(r),
			want: binary.LittleEndian.Uint32(r[8:]), got: binary.LittleEndian.Uint32(r[12:]),
			reread: binary.LittleEndian.Uint32(r[16:]), sm: binary.LittleEndian.Uint32(r[20:]),
		})
	}
	return count, errs, nil
}

func outOfMemory(err error) bool {
	var e *cudaError
	return errors.As(err, &e) && e.code == cudaOutOfMemory
}
