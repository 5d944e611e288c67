// SPDX-License-Identifier: Apache-2.0

package connector

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"diskhook/storage/failure"
)

// Properties is what the storage side has to know of this host before it can
// show it a volume: os-brick's connector properties.
type Properties struct {
	Platform      string   `json:"platform"`
	OSType        string   `json:"os_type"`
	IP            *string  `json:"ip"` // VDSM never says one
	Host          string   `json:"host"`
	Multipath     bool     `json:"multipath"`
	Initiator     string   `json:"initiator,omitempty"`
	LocalAttach   bool     `json:"do_local_attach"`
	NVMeMultipath bool     `json:"nvme_native_multipath"`
	WWPNs         []string `json:"wwpns,omitempty"`
	WWNNs         []string `json:"wwnns,omitempty"`
	NQN           string   `json:"nqn,omitempty"`
	NVMeHostID    string   `json:"nvme_hostid,omitempty"`
	SystemUUID    string   `json:"system uuid,omitempty"`
}

// Properties looks at the host. What it does not have is left out. If ctx ends
// first, that is a failure.Temporary: what did not answer may be there.
func (h *Host) Properties(ctx context.Context) (Properties, error) {
	name, err := os.Hostname()
	if err != nil {
		return Properties{}, err
	}
	p := Properties{
		Platform:      platform(),
		OSType:        runtime.GOOS,
		Host:          name,
		Multipath:     h.multipathd(ctx),
		Initiator:     h.initiator(),
		NVMeMultipath: attr(h.at("sys/module/nvme_core/parameters/multipath")) == "Y",
		NQN:           attr(h.at("etc/nvme/hostnqn")),
		NVMeHostID:    attr(h.at("etc/nvme/hostid")),
		SystemUUID:    strings.ToLower(attr(h.at("sys/class/dmi/id/product_uuid"))),
	}
	if ctx.Err() != nil {
		err := failure.Wrap(failure.Temporary, fmt.Errorf("multipathd: no answer: %w", ctx.Err()))
		return Properties{}, failure.Hint(err, "see what it waits for with `systemctl status multipathd`")
	}
	for _, hba := range h.hbas() {
		dir := h.at("sys/class/fc_host", "host"+hba)
		p.WWPNs = append(p.WWPNs, normalWWN(attr(dir, "port_name")))
		p.WWNNs = append(p.WWNNs, normalWWN(attr(dir, "node_name")))
	}
	return p, nil
}

// initiator reads open-iscsi's file, lines of "InitiatorName=iqn.…".
func (h *Host) initiator() string {
	for _, line := range strings.Split(attr(h.at(filepath.Join("etc/iscsi", "initiatorname.iscsi"))), "\n") {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "InitiatorName="); ok {
			return strings.TrimSpace(name)
		}
	}
	return ""
}

// platform is `uname -m`, as Python's platform.machine().
func platform() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}
