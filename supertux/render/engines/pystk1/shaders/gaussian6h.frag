uniform sampler2D tex;
uniform vec2 pixel;
uniform float sigma;
out vec4 FragColor;
void main()
{
    vec2 uv = gl_FragCoord.xy * pixel;
    float first = exp(-0.5 / (sigma * sigma));
    float second = first * first * first * first;
    vec2 away = vec2(pixel.x, 0.0) * ((first + 2.0 * second) / (first + second));
    vec4 sides = texture(tex, uv - away) + texture(tex, uv + away);
    FragColor = (texture(tex, uv) + sides * (first + second)) / (2.5066 * sigma);
}
