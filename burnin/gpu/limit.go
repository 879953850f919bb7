package gpu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// Limit reads {"share": S} and sets the power limit of every card to S of its
// default, or to its default when S is 0, but never below what the card allows
// (NVML API reference, nvmlDeviceSetPowerManagementLimit; root only). Nothing
// is believed: each limit is read back. It writes one line a card.
//
// The limit is the driver's: it lasts until the driver is unloaded or the
// machine restarts.
func Limit(in io.Reader, out io.Writer) error {
	var want struct {
		Share float64 `json:"share"`
	}
	if err := json.NewDecoder(io.LimitReader(in, maxRequest)).Decode(&want); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	if !(want.Share >= 0 && want.Share < 1) {
		return fmt.Errorf("share %v: want 0 for the default, or above 0 and below 1", want.Share)
	}
	path := nvmlName
	if v := os.Getenv(EnvNVML); v != "" {
		path = v
	}
	handle, simulated, err := dlopen(path)
	if err != nil {
		return fmt.Errorf("no NVIDIA driver: %w", err)
	}
	lib, err := openNVML(handle, path)
	if err != nil {
		return err
	}
	defer lib.close()
	cards, failed, err := lib.devices()
	if err != nil {
		return err
	}
	for _, d := range cards {
		set, err := d.limitTo(want.Share)
		if err != nil {
			failed = append(failed, fmt.Errorf("GPU %s: %w", d.address, err))
			continue
		}
		word := ""
		if simulated {
			word = " (simulated)"
		}
		fmt.Fprintf(out, "GPU %s: %.0f W%s\n", d.address, set, word)
	}
	if len(cards)+len(failed) == 0 {
		return errors.New("the driver has no card")
	}
	return errors.Join(failed...)
}

// nvmlLimit are the symbols that limiting needs; GeForce drivers have them.
var nvmlLimit = []string{
	"nvmlDeviceGetPowerManagementDefaultLimit", "nvmlDeviceGetPowerManagementLimitConstraints",
	"nvmlDeviceSetPowerManagementLimit", "nvmlDeviceGetPowerManagementLimit",
}

// limitTo sets the card's limit and returns the one that holds, in watts.
func (d device) limitTo(share float64) (float64, error) {
	for _, s := range nvmlLimit {
		if !d.l.optional(s) {
			return 0, fmt.Errorf("the driver lacks %s", s)
		}
	}
	full, ret := d.d.GetPowerManagementDefaultLimit()
	if err := check("nvmlDeviceGetPowerManagementDefaultLimit", ret); err != nil {
		return 0, err
	}
	want := full
	if share > 0 {
		low, high, ret := d.d.GetPowerManagementLimitConstraints()
		if err := check("nvmlDeviceGetPowerManagementLimitConstraints", ret); err != nil {
			return 0, err
		}
		want = min(max(uint32(math.Round(share*float64(full))), low), high)
	}
	if now, ret := d.d.GetPowerManagementLimit(); ret != nvml.SUCCESS || now != want {
		if err := check("nvmlDeviceSetPowerManagementLimit", d.d.SetPowerManagementLimit(want)); err != nil {
			return 0, err
		}
	}
	now, ret := d.d.GetPowerManagementLimit()
	if err := check("nvmlDeviceGetPowerManagementLimit", ret); err != nil {
		return 0, err
	}
	if now != want {
		return 0, fmt.Errorf("its limit was set to %d mW and reads %d mW", want, now)
	}
	return float64(now) / 1000, nil
}
