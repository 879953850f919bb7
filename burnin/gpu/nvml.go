package gpu

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/ebitengine/purego"
)

// nvmlNeeded are the symbols called without asking first. All are in every
// driver since 470. nvmlErrorString is among them because go-nvml calls it to
// print any Return.
var nvmlNeeded = []string{
	"nvmlInit_v2", "nvmlShutdown", "nvmlErrorString", "nvmlSystemGetDriverVersion",
	"nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByPciBusId_v2",
	"nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetName", "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetTemperature",
}

// errLost: the card fell off the bus.
var errLost = errors.New("the card fell off the bus")

// nvmlError keeps the number for the one that asks.
type nvmlError struct {
	call string
	ret  nvml.Return
}

func (e *nvmlError) Error() string { return fmt.Sprintf("%s: %s", e.call, e.ret.Error()) }

func (e *nvmlError) Is(target error) bool {
	return target == errLost && (e.ret == nvml.ERROR_GPU_IS_LOST || e.ret == nvml.ERROR_RESET_REQUIRED)
}

func check(call string, ret nvml.Return) error {
	if ret == nvml.SUCCESS {
		return nil
	}
	return &nvmlError{call, ret}
}

// nvmlOptional are the symbols that some driver in use lacks. go-nvml methods
// that need one of them may be called only when it is there.
var nvmlOptional = []string{
	"nvmlDeviceGetTemperatureThreshold", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetClockInfo",
	"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons",
}

// library is NVML after a successful Init. There is no other way to get one,
// since any call before ends the process.
type library struct {
	nvml   nvml.Interface
	has    map[string]bool
	driver string
}

// openNVML opens the library at path, whose handle was opened before.
func openNVML(handle uintptr, path string) (*library, error) {
	var missing []string
	for _, s := range nvmlNeeded {
		if _, err := purego.Dlsym(handle, s); err != nil {
			missing = append(missing, s)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%s lacks %s: the driver is too old or not NVIDIA's", path, strings.Join(missing, ", "))
	}
	l := &library{nvml: nvml.New(nvml.WithLibraryPath(path)), has: map[string]bool{}}
	if ret := l.nvml.Init(); ret != nvml.SUCCESS {
		if ret == nvml.ERROR_LIBRARY_NOT_FOUND {
			return nil, fmt.Errorf("cannot load %s", path) // nothing may be called now, not even Error
		}
		return nil, fmt.Errorf("NVML does not start: %w", check("nvmlInit", ret))
	}
	v, ret := l.nvml.SystemGetDriverVersion()
	if err := check("nvmlSystemGetDriverVersion", ret); err != nil {
		return nil, err
	}
	l.driver = v
	for _, s := range slices.Concat(nvmlOptional, nvmlLimit) {
		l.has[s] = l.nvml.Extensions().LookupSymbol(s) == nil
	}
	return l, nil
}

func (l *library) close() { l.nvml.Shutdown() }

// optional tells whether the installed driver has a symbol of nvmlOptional.
func (l *library) optional(symbol string) bool { return l.has[symbol] }

// device is one card as NVML sees it.
type device struct {
	l *library
	d nvml.Device

	address, name, uuid string
	id                  string // vendor:device of PCI
	vram                uint64
}

// address brings the bus id of NVML ("00000000:01:00.0") to the form of sysfs.
func sysfsAddress(busID [32]uint8) string {
	s := strings.ToLower(strings.TrimRight(string(busID[:]), "\x00"))
	if domain, rest, ok := strings.Cut(s, ":"); ok && len(domain) == 8 {
		return strings.TrimPrefix(domain, "0000") + ":" + rest
	}
	return s
}

// devices lists the cards of the driver. A card that is lost appears with its
// error instead of its facts, as far as NVML still tells which one it is.
func (l *library) devices() ([]device, []error, error) {
	n, ret := l.nvml.DeviceGetCount()
	if err := check("nvmlDeviceGetCount", ret); err != nil {
		return nil, nil, err
	}
	var out []device
	var bad []error
	for i := range n {
		d, ret := l.nvml.DeviceGetHandleByIndex(i)
		if err := check(fmt.Sprintf("card %d: nvmlDeviceGetHandleByIndex", i), ret); err != nil {
			bad = append(bad, err)
			continue
		}
		dev, err := l.facts(d)
		if err != nil {
			bad = append(bad, fmt.Errorf("card %d: %w", i, err))
			continue
		}
		out = append(out, dev)
	}
	return out, bad, nil
}

func (l *library) find(address string) (device, error) {
	d, ret := l.nvml.DeviceGetHandleByPciBusId(address)
	if err := check("nvmlDeviceGetHandleByPciBusId", ret); err != nil {
		return device{}, err
	}
	return l.facts(d)
}

func (l *library) facts(d nvml.Device) (device, error) {
	dev := device{l: l, d: d}
	pci, ret := d.GetPciInfo()
	if err := check("nvmlDeviceGetPciInfo", ret); err != nil {
		return dev, err
	}
	dev.address = sysfsAddress(pci.BusId)
	dev.id = fmt.Sprintf("%04x:%04x", pci.PciDeviceId&0xffff, pci.PciDeviceId>>16)
	if dev.name, ret = d.GetName(); ret != nvml.SUCCESS {
		return dev, check("nvmlDeviceGetName", ret)
	}
	if dev.uuid, ret = d.GetUUID(); ret != nvml.SUCCESS {
		return dev, check("nvmlDeviceGetUUID", ret)
	}
	mem, ret := d.GetMemoryInfo()
	if err := check("nvmlDeviceGetMemoryInfo", ret); err != nil {
		return dev, err
	}
	dev.vram = mem.Total
	return dev, nil
}

// lost asks the driver whether the card is still on the bus.
func (d device) lost() bool {
	_, err := d.temperature()
	return errors.Is(err, errLost)
}

func (d device) temperature() (float64, error) {
	t, ret := d.d.GetTemperature(nvml.TEMPERATURE_GPU)
	return float64(t), check("nvmlDeviceGetTemperature", ret)
}

// slowdown is the temperature at which the card throttles itself.
func (d device) slowdown() (float64, bool) {
	if !d.l.optional("nvmlDeviceGetTemperatureThreshold") {
		return 0, false
	}
	t, ret := d.d.GetTemperatureThreshold(nvml.TEMPERATURE_THRESHOLD_SLOWDOWN)
	return float64(t), ret == nvml.SUCCESS && t > 0
}

// A reading is one value of a card; NOT_SUPPORTED is normal on GeForce, so
// what cannot be read is simply absent.
type reading struct {
	name, unit string
	value      float64
}

func (d device) readings() ([]reading, error) {
	t, err := d.temperature()
	if err != nil {
		return nil, err
	}
	out := []reading{{"temperature", "C", t}}
	if d.l.optional("nvmlDeviceGetPowerUsage") {
		if mw, ret := d.d.GetPowerUsage(); ret == nvml.SUCCESS {
			out = append(out, reading{"power", "W", float64(mw) / 1000})
		}
	}
	if d.l.optional("nvmlDeviceGetClockInfo") {
		if mhz, ret := d.d.GetClockInfo(nvml.CLOCK_SM); ret == nvml.SUCCESS {
			out = append(out, reading{"SM clock", "MHz", float64(mhz)})
		}
		if mhz, ret := d.d.GetClockInfo(nvml.CLOCK_MEM); ret == nvml.SUCCESS {
			out = append(out, reading{"memory clock", "MHz", float64(mhz)})
		}
	}
	return out, nil
}

// Reasons for a low clock (nvml.h, nvmlClocksThrottleReasonXxx).
const (
	reasonHWThermal    = 0x40
	reasonHWPowerBrake = 0x80
)

// throttled tells why the card holds its clock down right now. Drivers before
// 535 know the older name of the call only.
func (d device) throttled() (reasons uint64, known bool) {
	switch {
	case d.l.optional("nvmlDeviceGetCurrentClocksEventReasons"):
		r, ret := d.d.GetCurrentClocksEventReasons()
		return r, ret == nvml.SUCCESS
	case d.l.optional("nvmlDeviceGetCurrentClocksThrottleReasons"):
		r, ret := d.d.GetCurrentClocksThrottleReasons()
		return r, ret == nvml.SUCCESS
	}
	return 0, false
}
