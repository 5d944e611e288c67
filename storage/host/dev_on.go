// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package host

import "os"

// Dev is where device nodes are. A test whose lvm is a fake has loop devices
// behind a /dev of its own.
func (l Layout) Dev() string {
	if dev := os.Getenv("DISKHOOK_DEV"); dev != "" {
		return dev
	}
	return "/dev"
}
