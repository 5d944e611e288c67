// SPDX-License-Identifier: Apache-2.0

//go:build !testroot

package command

func testDirs() []string { return nil }
func testEnv() []string  { return nil }
