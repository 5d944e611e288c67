// SPDX-License-Identifier: Apache-2.0

//go:build !testroot

package failpoint

// Hit passes the point called name.
func Hit(string) error { return nil }
