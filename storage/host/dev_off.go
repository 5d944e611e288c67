// SPDX-License-Identifier: Apache-2.0

//go:build !testroot

package host

// Dev is where device nodes are.
func (l Layout) Dev() string { return "/dev" }
