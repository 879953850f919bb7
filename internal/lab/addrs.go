package lab

// The lab's addresses: the server, and one for each BMC and the PDU, all on
// the bridge, so that each speaks on its protocol's own port.
const (
	serverAddr  = "10.77.0.1"
	ipmiAddr    = "10.77.0.21"
	redfishAddr = "10.77.0.22"
	pduAddr     = "10.77.0.23"
)

var bridgeAddrs = []string{serverAddr + "/16", ipmiAddr + "/16", redfishAddr + "/16", pduAddr + "/16"}
