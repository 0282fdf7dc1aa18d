// Command hello is what TestBuildMakesBinariesThatRun builds.
package main

import "fmt"

func main() { fmt.Println("hello") }
