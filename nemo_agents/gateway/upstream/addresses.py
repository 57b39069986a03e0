"""Which addresses no provider can have: those at which a machine tells its own secrets to whoever asks.

A base URL is the operator's, but a name in it resolves to whatever its owner says. Private and loopback addresses are
fine: models run there.
"""

from __future__ import annotations

import ipaddress
from typing import Final

__all__ = ["refused_address"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Link-local addresses, among them 169.254.169.254: instance metadata at AWS, Google, Azure and others. The two beside
# them are the IPv6 one of AWS ("Instance Metadata Service", EC2) and that of Alibaba ("Instance metadata", ECS).
_METADATA: Final = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


def refused_address(text: str) -> str | None:
    """Say what an IP address is when no connection may be made to it; None when one may, or it is no address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    for form in (address, *_ipv4_within(address)):
        if form.is_link_local:
            return "a link-local address, where machines tell their own credentials"
        if _without_scope(form) in _METADATA:
            return "the address of a cloud's instance metadata"
    return None


def _ipv4_within(address: _Address) -> list[_Address]:
    """Return the IPv4 addresses that an IPv6 address stands for: mapped, 6to4, or through NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[_Address | None] = [address.ipv4_mapped, address.sixtofour]
    if address in _NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return [each for each in found if each is not None]


def _without_scope(address: _Address) -> _Address:
    return ipaddress.IPv6Address(int(address)) if isinstance(address, ipaddress.IPv6Address) else address
