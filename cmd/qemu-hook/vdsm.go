// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"syscall"
)

// points are VDSM's hook points that diskhook acts on, and whether it is
// called without a VM.
var points = map[string]struct{ host bool }{
	"after_disk_prepare":       {},
	"before_vm_start":          {},
	"before_disk_hotplug":      {},
	"after_disk_hotunplug":     {},
	"before_vm_migrate_source": {},
	"after_vm_destroy":         {},
	"before_vm_dehibernate":    {},
	"after_vm_hibernate":       {},
	"after_vm_dehibernate":     {},
	"before_vdsm_start":        {host: true},
	"after_get_caps":           {host: true},
}

// properties are the custom properties that bind a VM's disks.
var properties = []string{"diskhook", "localdisk", "quorum", "volume"}

// vetoed is the exit code by which a hook tells VDSM to stop.
const vetoed = 2

// fromVDSM takes the hook point from the directory that the program was
// started in (…/hooks/POINT/50_diskhook), or from its one argument.
func fromVDSM(argv []string) int {
	point := hookPoint(argv)
	kind, known := points[point]
	if !known {
		return 0
	}
	next := []string{program, "hook", "run", "--", "vdsm", point}
	if kind.host {
		runAndForget(next, vdsmEnv(), document{})
		return 0
	}
	if !concerned() {
		return 0
	}
	hand(next, vdsmEnv(), document{})
	return vetoed
}

func hookPoint(argv []string) string {
	if len(argv) == 2 {
		return argv[1]
	}
	dirs := strings.Split(argv[0], "/")
	if len(argv) != 1 || len(dirs) < 2 {
		return ""
	}
	return dirs[len(dirs)-2]
}

func concerned() bool {
	for _, name := range properties {
		if _, set := syscall.Getenv(name); set {
			return true
		}
	}
	if hasReceipts(os.Getenv("vmId")) {
		return true
	}
	f, err := os.Open(os.Getenv("_hook_domxml"))
	if err != nil {
		return false
	}
	defer f.Close()
	return readXML(f).marked
}

// vdsmEnv is all that `diskhook hook run -- vdsm` gets to know of VDSM's
// environment.
func vdsmEnv() []string {
	env := baseEnv()
	for _, name := range append([]string{"vmId", "_hook_domxml", "_hook_json"}, properties...) {
		if value, set := syscall.Getenv(name); set {
			env = append(env, name+"="+value)
		}
	}
	return env
}
