uniform usampler2D tex;
layout(location = 3) out uint o_label;
void main()
{
    o_label = texelFetch(tex, ivec2(gl_FragCoord.xy), 0).x;
}
