package disk

import (
	"errors"
	"testing"
	"unsafe"
)

func TestFormatCommand(t *testing.T) {
	if got := unsafe.Sizeof(nvmeCommand{}); got != 72 {
		t.Fatalf("struct nvme_passthru_cmd has 72 bytes, not %d", got)
	}
	for _, tt := range []struct {
		name       string
		oacs, fna  byte
		flbas, dps byte
		second     byte // namespace
		want       uint32
		refused    bool
	}{
		{name: "user data", oacs: 2, want: 1 << 9},
		{name: "crypto", oacs: 2, fna: 4, want: 2 << 9},
		{name: "keeps the format", oacs: 2, flbas: 0x33, dps: 0x0a, want: 1<<9 | 3 | 1<<4 | 2<<5 | 1<<8 | 1<<12},
		{name: "no format", oacs: 0xfd, refused: true},
		{name: "all namespaces, alone", oacs: 2, fna: 3, want: 1 << 9},
		{name: "all namespaces, not alone", oacs: 2, fna: 2, second: 7, refused: true},
		{name: "own namespace of two", oacs: 2, second: 7, want: 1 << 9},
	} {
		controller, namespace, active := make([]byte, 4096), make([]byte, 4096), make([]byte, 4096)
		controller[256], controller[524] = tt.oacs, tt.fna
		namespace[26], namespace[29] = tt.flbas, tt.dps
		active[0], active[4] = 1, tt.second
		c, err := formatCommand(controller, namespace, active, 1)
		if tt.refused != errors.Is(err, ErrWeaker) || c.cdw10 != tt.want {
			t.Errorf("%s: %#x, %v; want %#x", tt.name, c.cdw10, err, tt.want)
		}
	}
}
